"""What is said beside a suite's tables: footnotes, how the numbers were judged, the experimental setup."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from peftlab.component import Reference
from peftlab.profiling.profile import MIB
from peftlab.reports.analysis import Analysis, Line, power
from peftlab.reports.columns import title
from peftlab.results.run_result import RunResult
from peftlab.suites.suite import Suite

UNDISTURBED = 0.95  # of a timed pass with the processor to itself
LETTERS = "abcdefghijklmnopqrstuvwxyz"


@dataclass
class Notes:
    """Footnotes, lettered in the order of their first mention."""

    texts: list[str] = field(default_factory=list)

    def marks(self, texts: Iterable[str]) -> list[str]:
        found = []
        for text in texts:
            if text not in self.texts:
                self.texts.append(text)
            found.append(self.letter(self.texts.index(text)))
        return found

    def marker(self, remarks: Callable[[Line], list[str]]) -> Callable[[Line], list[str]]:
        """The letters of what there is to remark of a line."""
        return lambda line: self.marks(remarks(line))

    @staticmethod
    def letter(number: int) -> str:
        """
        >>> [Notes.letter(number) for number in (0, 25, 26, 702)]
        ['a', 'z', 'aa', 'aaa']
        """
        more, last = divmod(number, len(LETTERS))
        return (Notes.letter(more - 1) if more else "") + LETTERS[last]


def remarks(line: Line) -> list[str]:
    """What a reader must know of a line: the method's fidelity, runs that did not end well, another machine."""
    texts = []
    if line.refused is not None:
        texts.append(f"unsupported: {line.refused}")
    if line.recipe.method.fidelity:
        texts.append(f"{line.recipe.method.title}: {line.recipe.method.fidelity}")
    for state, count in sorted(line.states.items()):
        if state != "done":
            reasons = sorted({stored.record.reason or "" for stored in line.ended if stored.record.state == state})
            texts.append(f"{count} of {line.wanted} runs {state}: {'; '.join(reasons)}")
    undefined = line.states["done"] - (0 if line.score is None else line.score.n)
    if undefined:
        texts.append(f"of {undefined} runs that are done {line.recipe.task.selection} is undefined")
    if line.blank:
        texts.append(f"{line.blank} of {line.wanted} runs learnt nothing: no better than one answer for all examples")
    search = line.search
    if line.all_trials_failed:
        ends = {f"{s.record.state}: {s.record.reason}" for s in line.trials if s.record.state != "done"}
        texts.append(
            ": ".join(["none of its learning rates gave a score", *(["; ".join(sorted(ends))] if ends else [])])
        )
    if search is not None and search.at_edge:
        texts.append(f"the best learning rate is at the edge of the grid{', extended as it was' * search.extended}")
    return texts + [f"some of its runs or trials on other ground: {ground}" for ground in line.marks]


def profile_remarks(line: Line) -> list[str]:
    """What a reader must know of a line's ledger."""
    if line.measured is None:
        return []
    record, texts = line.measured.record, []
    if record.profile is None:
        texts.append(f"not measured: {record.state}: {record.reason}")
    elif record.profile.memory.held:
        held = record.profile.memory.held / MIB
        texts.append(f"{held:,.2f} MiB beside the gradients are still held at the end of the backward pass")
    times = record.profile.times if record.profile else None
    if times is not None and times.processor_share is not None and times.processor_share < UNDISTURBED:
        taken = 1 - times.processor_share
        texts.append(f"its times are not its own: other processes had the processor for {taken:.0%} of them")
    if line.measured_elsewhere is not None:
        texts.append(f"measured on other ground than the runs: {line.measured_elsewhere}")
    return texts


def judgement(findings: Analysis, task: str) -> list[str]:
    """How the result table was computed, and what it could not have seen."""
    suite, lines = findings.suite, findings.of_task(task)
    if all(line.score is None for line in lines):
        return to_come(findings, task)  # there is no number of which to say how it was judged
    compared = sum(line.comparison is not None for line in lines)
    used = " and ".join(sorted({line.comparison.test for line in lines if line.comparison is not None}))
    texts = [
        "Mean ± sample deviation over n seeds. Bold: not to be told from the best "
        f"({used or 'nothing was compared'}; Holm, 5 %). "
        f"Intervals: 95 %, over seeds and {suite.split} examples. Differences are to {suite.reference}, paired by "
        f"example; p of no difference, and of being worse by {suite.margin:g} or more (one half of TOST), both "
        f"adjusted by Holm over the {compared} comparisons. Intervals are not adjusted: one may leave out 0 where p is "
        "above 0.05."
    ]
    texts += _power(findings, task)
    floor = findings.floor(task)
    if floor is not None:
        texts.append(f"One answer for all examples, train's mean or most frequent, scores {floor:.4f}.")
    if any(line.estimate is not None and line.interval is None for line in lines):
        texts.append(
            "A line has no interval where neither another seed nor other examples would have changed its score."
        )
    if any(line.score is not None and line.score.n == 1 for line in lines):
        texts.append("A line with n = 1 speaks of that one trained model, not of the method: the seed's luck is in it.")
    return texts + to_come(findings, task)


def to_come(findings: Analysis, task: str) -> list[str]:
    """How many runs are missing, if any."""
    open_lines = [line for line in findings.of_task(task) if line.refused is None]
    missing = sum(line.wanted - len(line.ended) for line in open_lines if not line.all_trials_failed)
    return [f"{missing} of {sum(line.wanted for line in open_lines)} runs are still to come."] if missing else []


def _power(findings: Analysis, task: str) -> list[str]:
    """What the tests could have seen, as far as the metric has such differences."""
    found = power(findings, task)
    if found is None:
        return []
    widest = min(line.widest for line in findings.of_task(task) if line.comparison is not None)
    if found.least >= widest:
        return [
            "Power: none. There is no difference that this table's strictest test finds with 80 % chance, for "
            f"{findings.metric(task)} has none so large: that methods are not told apart says nothing of them."
        ]
    most = f"of {found.most:.4f}" if found.most < widest else "none at all"
    said = (
        f"Power: with 80 % chance the strictest test of this table finds a difference of {found.least:.4f} in its "
        f"steadiest line and {most} in its least steady one; smaller ones may have gone unseen."
    )
    suite = findings.suite
    if found.margin > suite.margin:
        said += (
            f" That a method as good as {suite.reference} is no worse, it shows with that chance from a margin of "
            f"{found.margin:.4f} on: {suite.margin:g} is too narrow for these seeds and examples."
        )
    return [said]


def costs(suite: Suite) -> str:
    """What the columns of the cost table mean."""
    said = (
        "Parameters of the method and of the task's head; tokens trained on, without padding; peak of the process: "
        "resident memory at its highest, libraries included; best after: the share of training's steps after which the "
        "kept state was reached, the median of the runs."
    )
    return said if suite.own_machine else f"{said} Times are not shown: the runs shared their machine."


def memory(findings: Analysis, task: str) -> list[str]:
    """What the columns of the memory table mean."""
    shapes = {(ledger.examples, ledger.length) for line in findings.of_task(task) if (ledger := line.ledger)}
    batches = " or ".join(f"{examples} x {length}" for examples, length in sorted(shapes))
    texts = [
        f"Tensors on the device in a steady training step over a batch of {batches} tokens without padding, in MiB. "
        "Activations: at the end of the forward pass. Transient: what the peak holds beyond the fullest end of a "
        "phase. The peak also holds the batch, and either activations or gradients. Evaluation: the peak of a pass "
        "without gradients."
    ]
    open_lines = [line for line in findings.of_task(task) if line.refused is None]
    missing = sum(line.measured is None for line in open_lines)
    if missing:
        texts.append(f"{missing} of {len(open_lines)} ledgers are still to come.")
    return texts


def speed(findings: Analysis) -> str:
    """What the columns of the table of operations and times mean."""
    name = findings.suite.reference
    return (
        "Operations of matrix products in millions a padded token, two a multiply-add; a step in forwards is their sum "
        f"over the forward's. Step: the median with quartiles, and tokens a second, over those of {name} on the same "
        "machine and batch, timed one process at a time and weighed by the rate of a large matrix product in that "
        "process, for a shared machine is now faster, now slower; a note says where others disturbed it. "
        "Inference: seconds of a forward pass over the base's without the method; of the base over that of a model "
        f"tuned with {name}; merge error: the largest change of an output."
    )


def matching(suite: Suite, task: str) -> list[str]:
    """What was done so that the methods of a task have the same number of parameters, and what that leaves over."""
    if suite.match is None:
        return []
    sizes = suite.sizes(task)
    found = [f"{s.method} {s.name} {s.size} ({s.parameters:,}, {s.excess * 100:+.2g} %)" for s in sizes]
    others = [name for name in suite.methods if name not in {size.method for size in sizes}]
    exempt = [name for name in others if not suite.methods[name].match]
    free = [name for name in others if name not in exempt]
    unsized = f"; without a size, so as they are: {', '.join(free)}" if free else ""
    unsized += f"; left as they are: {', '.join(exempt)}" if exempt else ""
    return [
        f"Methods are matched at {suite.match.parameters:,} parameters, heads excluded, as near as whole sizes come: "
        f"{', '.join(found)}{unsized}."
    ]


def choices(suite: Suite) -> str:
    """How learning rates were chosen."""
    trials = suite.trials
    if trials.points == 1:
        return "Learning rates are given, not chosen."
    over = "over the first base for all of them"
    if trials.per_quantization:
        over = "for each base by itself"
    more = ""
    if trials.extensions:
        count = "one" if trials.extensions == 1 else f"up to {trials.extensions}"
        more = f"; where the best was at the edge, {count} more beyond it"
    return (
        f"Learning rates: {trials.points} a method, a factor of {trials.factor:g} apart around its own centre{more}; "
        f"chosen on the validation split with seed {trials.seed}, {over}."
    )


def setup(findings: Analysis) -> list[str]:
    """A paragraph a task for a paper's section on experiments."""
    return [text for task in findings.suite.tasks if (text := _setup(findings, task))]


def references(findings: Analysis) -> list[Reference]:
    """The papers of all methods and quantisations in the suite, each once, by key."""
    found = {
        reference.key: reference
        for line in findings.lines
        for reference in (*line.recipe.method.references, *line.recipe.quantization.references)
    }
    return [found[key] for key in sorted(found)]


def _setup(findings: Analysis, task: str) -> str:
    suite, lines = findings.suite, findings.of_task(task)
    result = next((r for line in lines for r in (*line.results, *line.trial_results)), None)
    if result is None:
        return ""
    training = lines[0].recipe.training
    batch = training.batch
    of_batch = f"{batch['tokens']:,} tokens, padding included" if batch["tokens"] else f"{batch['examples']} examples"
    length = f"{training.steps:,} steps" if training.steps is not None else f"{training.passes:g} epochs"
    dropout = "the model's own dropout" if training.dropout is None else f"dropout {training.dropout:g}"
    clip = "no clipping" if training.clip is None else f"gradients clipped at norm {training.clip:g}"
    stop = f", stopped after {training.patience} evaluations without a better score" if training.patience else ""
    kept = "the state that scored best on validation" if training.keep_best else "the last state"
    methods = ", ".join(dict.fromkeys(title(line)[0] for line in lines))
    bases = ", ".join(dict.fromkeys(title(line)[1] for line in lines))
    seeds = f"{len(suite.seeds)} seed{'s' if len(suite.seeds) > 1 else ''}"
    scored = (
        "The test split was scored once, after training."
        if suite.protocol == "clean"
        else "As published, the score is that of the best epoch on the validation split."
    )
    sentences = [
        f"{task}: {result.recipe['model']['id']} on {result.data_source}, {_sizes(result)}.",
        f"Methods: {methods}; bases: {bases}.",
        *matching(suite, task),
        f"Each run trains for {length} with batches of {of_batch}, AdamW (betas {training.adam_betas[0]:g} and "
        f"{training.adam_betas[1]:g}, epsilon {training.adam_epsilon:g}, weight decay {training.weight_decay:g} on "
        f"matrices), a {training.schedule} schedule after a warm-up of {training.warmup * 100:g} % of the steps, "
        f"{clip}, {dropout}{stop}; {kept} is kept.",
        "The loss is the mean over all targets of a step.",
        *([f"A run is spread over {suite.placement.described}."] if suite.placement.processes > 1 else []),
        choices(suite),
        f"Then {seeds} of initialisation, data order and dropout, the same for every method.",
        scored,
        f"Ran on: {findings.common[task]}.",
    ]
    return " ".join(sentences)


def _sizes(result: RunResult) -> str:
    sizes = [f"{counts.examples:,} {split}" for split, counts in result.splits.items()]
    lost: Counter[str] = Counter()
    for counts in result.splits.values():
        lost.update({name: n for name, n in counts.dropped.items() if n})
    dropped = ", ".join(f"{n} {name.replace('_', ' ')}" for name, n in lost.items())
    return f"{', '.join(sizes)} examples" + (f" ({dropped})" if dropped else "")
