"""From a recipe to a result: the one module that knows all the parts."""

from __future__ import annotations

import contextlib
import dataclasses
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from peftlab import metrics
from peftlab.data.examples import Encoded, Example
from peftlab.distributed import DeviceMap
from peftlab.distributed.deepspeed import ZeroSettings
from peftlab.distributed.fsdp import FsdpSettings, device_mesh, gather_parameters
from peftlab.errors import OutOfMemoryError, ProcessLostError, UserError
from peftlab.io import atomic, redact
from peftlab.loading.attach import apply_method, count_parameters
from peftlab.loading.model import Base, autocast, refuse_unknown_tokens, resolve_precision
from peftlab.loading.workload import Workload, read
from peftlab.methods import TrainingPlan
from peftlab.recipe import Recipe
from peftlab.results.environment import environment
from peftlab.results.run_result import (
    Cost,
    Curve,
    MicroBatchReduction,
    Parameters,
    RunResult,
    SplitCounts,
    checkpoint_folder,
    tracking_folder,
    write_result,
)  # fmt: skip
from peftlab.runs import artifact, launch, scoring, summary, tracking
from peftlab.runs.console import ConsoleReporter
from peftlab.runs.resume import History, resume_from
from peftlab.runs.run_folder import publish, staging
from peftlab.runs.tracking import Tracking
from peftlab.training import checkpointing, interruption, loop, out_of_memory
from peftlab.training.callbacks import CheckpointCallback
from peftlab.training.checkpointing import Checkpoints
from peftlab.training.interruption import Interrupted
from peftlab.training.settings import CheckpointPolicy
from peftlab.training.state import Snapshot
from peftlab.training.train_log import Observers, Records, TrainLog

LEARNT = ("train", "replay")  # the splits that are trained on


def run(
    recipe: Recipe,
    folder: Path,
    *,
    resume: bool = False,
    keeping: CheckpointPolicy | None = None,
    process_timeout: float = 30.0,
    score_base: bool = False,
    device_map: DeviceMap | None = None,
    trust: str | None = None,
    trackers: Sequence[str] = (),
) -> RunResult:
    """Do what the recipe says and leave it in `folder`, in place of what may be there.

    `resume` goes on from the newest checkpoint beside it, if there is one. Processes wait for each other for
    `process_timeout` minutes. `score_base` scores the base before it is tuned, too, if it has no new head. `device_map`
    spreads the base over all GPUs of this one process. `trust` is the revision whose own code may run (`Model.files`).
    `trackers` are Accelerate's names of those that are told how it goes.
    """
    sharding, zero = FsdpSettings.from_env(), ZeroSettings.from_env()
    if score_base and (sharding is not None or zero is not None):
        raise UserError("--score-base: of a base that is in shares it is not measured; leave one of them out")
    accelerator = launch.init_accelerator(
        recipe,
        minutes=process_timeout,
        sharding=sharding,
        zero=zero,
        device_map=device_map,
        tracking=tracking.settings(trackers, tracking_folder(folder)),
    )
    with staging(folder, accelerator) as staged, ConsoleReporter(silent=not accelerator.is_main_process) as screen:
        try:
            with contextlib.ExitStack() as signal_guard:
                this = _Run(recipe, accelerator, sharding, zero, device_map, screen, staged, signal_guard)
                result = this.result(
                    checkpoint_folder(folder),
                    keeping or CheckpointPolicy(),
                    resume=resume,
                    score_base=score_base,
                    trust=trust,
                )
                this.tracking.finished(result)
                if accelerator.is_main_process:
                    write_result(result, staged)
                    publish(staged, folder)
        except Exception as error:
            reason = atomic.storage_error(error)
            if reason is not None:
                raise UserError(f"--output {folder}: cannot be written: {reason}") from None
            if accelerator.num_processes > 1 and launch.is_peer_failure(error) and not out_of_memory.caused(error):
                raise ProcessLostError(
                    f"another process of this run is gone, or was silent for {process_timeout:g} minutes "
                    f"({' '.join(str(error).split())[:120]}); what is kept can be gone on from with --resume"
                ) from None
            if not out_of_memory.caused(error):
                raise
            raise OutOfMemoryError(
                f"out of memory outside of the training steps: {out_of_memory.asked_for(error)}; "
                f"{out_of_memory.limits(accelerator.device)}"
            ) from None
        accelerator.wait_for_everyone()
        screen.summary(result, folder)
        this.tracking.end()
    return result


@dataclasses.dataclass(frozen=True)
class PreparedModel:
    """A model that is ready to train."""

    base: Base
    model: torch.nn.Module  # the base, and the method attached to it
    examples: list[Example]
    parameters: Parameters
    untouched: dict[str, dict[str, float]]  # scores of the base as it came, by split


class _Run:
    """One run, phase by phase, each on its own clock."""

    def __init__(
        self,
        recipe: Recipe,
        accelerator: Accelerator,
        sharding: FsdpSettings | None,
        zero: ZeroSettings | None,
        device_map: DeviceMap | None,
        screen: ConsoleReporter,
        folder: Path,
        signal_guard: contextlib.ExitStack,  # put up once there is something that a signal must not lose
    ) -> None:
        self.recipe = recipe
        self.accelerator = accelerator
        self.sharding = sharding
        self.zero = zero
        self.shared = sharding is not None or (zero is not None and zero.stage == 3)  # the parameters
        self.device_map = device_map if torch.cuda.device_count() > 1 else None
        if self.device_map != device_map:
            screen.line("device map", "one device: there is nothing to spread the model over")
        self.screen = screen
        self.folder = folder
        self.signal_guard = signal_guard
        self.precision = resolve_precision(recipe.training.precision, accelerator.device)
        self.environment = environment(
            accelerator.device.type,
            self.precision,
            accelerator.num_processes,
            sharded=self.shared,
            zero=None if zero is None else zero.stage,
            device_map=self.device_map,
        )
        self.scored = ("validation", "test") if recipe.score_test else ("validation",)
        self.history = History()
        self.tracking = Tracking(recipe, accelerator, screen.line)

    def result(
        self, checkpoints: Path, keeping: CheckpointPolicy, *, resume: bool, score_base: bool, trust: str | None
    ) -> RunResult:
        start = time.perf_counter()
        material = read(self.recipe, self.accelerator, trust)
        rows, task = material.rows, material.task
        encoded, skipped = self._encoded(material)
        floors = self._floors(material)
        ready = self._ready(material, encoded, score_base=score_base)
        self.history.load_seconds = time.perf_counter() - start - self.history.evaluate_seconds
        kept = Checkpoints(checkpoints, self._identity(material), kept=keeping.kept)
        resumed = resume_from(
            kept, self.history, self.environment, self.accelerator, resume=resume, say=self.screen.line
        )
        keeper = CheckpointCallback(kept, keeping, self.accelerator, more=self.history.model_dump, say=self.screen.line)
        self.signal_guard.enter_context(interruption.deferred())
        log = self._trained(material, encoded, ready, keeper, resumed)
        parameters = ready.parameters
        if log.unused:
            parameters = count_parameters(ready.model, ready.base)
            self.screen.line("frozen", f"{len(log.unused)} tensors that no forward used, e.g. {log.unused[0]}")
        predictions = {"validation": log.records}
        if self.recipe.score_test:
            try:
                predictions["test"] = self._predict(material, encoded, ready.model, "test")
            except Interrupted:
                keeper.stop()
        scores = {split: scoring.score(task, records) for split, records in predictions.items()}
        adapter_bytes = self._saved(material, encoded, ready.model, log, predictions)
        return RunResult(
            name=self.recipe.name,
            digest=self.recipe.digest,
            recipe=redact.redacted(self.recipe.to_record()),
            started=self.history.started,
            command=_command(),
            metrics=scores,
            metric_signatures=metrics.signatures(task.metrics),
            constant_baseline=floors,
            base_model=ready.untouched,
            selection=task.selection,
            selection_minimized=task.lower_is_better,
            best_step=log.best_step if self.recipe.training.keep_best else None,
            stopped_early=log.stopped_early,
            curve=Curve(
                steps=[look.step for look in log.evaluations],
                scores=[look.scores[task.selection] for look in log.evaluations],
                losses=[look.loss for look in log.evaluations],
            ),
            parameters=parameters,
            unused=log.unused,
            method_stats=self.recipe.method.stats(ready.model),
            fidelity=self.recipe.method.fidelity,
            cost=Cost(
                load_seconds=round(self.history.load_seconds, 3),
                train_seconds=round(log.seconds, 3),
                evaluate_seconds=round(self.history.evaluate_seconds, 3),
                optimizer_steps=len(log.steps),
                tokens=log.tokens,
                tokens_per_second=round(log.tokens / log.seconds, 1),
                padding_fraction=round(1 - log.tokens / log.padded_tokens, 4),
                adapter_bytes=adapter_bytes,
            ),
            splits={
                split: SplitCounts(
                    examples=len(part.rows),
                    tokens=sum(sum(task.lengths(e)) for e in part.examples),
                    dropped=part.counts,
                    skipped=skipped[split],
                    leaks=rows.leaks.get(split),
                )
                for split, part in encoded.items()
            },
            model_source=material.files.source,
            model_fingerprint=material.files.fingerprint,
            model_code=material.files.code_revision,
            data_source=rows.source,
            data_fingerprint=rows.fingerprint,
            environment=self.environment,
            resumes=self.history.resumes,
            micro_batch_reductions=[MicroBatchReduction(**dataclasses.asdict(halving)) for halving in log.halvings],
        )

    def _encoded(self, material: Workload) -> tuple[dict[str, Encoded], dict[str, dict[str, int]]]:
        """Examples by split, and how many rows were left out by reason."""
        rows, encoded, skipped = material.rows, {}, {}
        for split in rows.rows:
            encoded[split], unfit = material.encoded(split)
            skipped[split] = {**rows.skipped.get(split, {}), **unfit}
        self._say(summary.data_lines(self.recipe, material.files.source, rows, encoded))
        learnt = [row for split in LEARNT for row in rows.rows.get(split, [])]
        remark = material.task.check_training_rows(learnt)
        if remark is not None:
            self.screen.line("labels", remark)
        return encoded, skipped

    def _floors(self, material: Workload) -> dict[str, dict[str, float]]:
        """What a constant answer scores. Raises UserError if no answer can be scored on the validation split."""
        rows, task = material.rows.rows, material.task
        floors = {split: task.constant_baseline(rows["train"], rows[split]) for split in self.scored}
        scoring.check_possible(task, floors["validation"], rows["validation"])
        return {split: floor for split, floor in floors.items() if floor is not None}

    def _ready(self, material: Workload, encoded: Mapping[str, Encoded], *, score_base: bool) -> PreparedModel:
        """The base with the method attached, in shares if so placed, and what it trains on."""
        # What is shared out may be too large for one device.
        device = torch.device("cpu") if self.shared else self.accelerator.device
        base = material.base(device, self.precision, self.device_map)
        refuse_unknown_tokens(base, (example for part in encoded.values() for example in part.examples))
        examples = [example for split in LEARNT if split in encoded for example in encoded[split].examples]
        examples = material.task.training_examples(examples, material.limit)
        if not examples:
            raise UserError(f"data: the train split of {material.rows.source} has nothing to learn")
        lengths = [len(example) for example in examples]
        plan = TrainingPlan(
            optimizer_steps=loop.schedule_length(lengths, self.recipe.training, self.recipe.seeds),
            task_type=material.task.task_type,
            head=base.head,
            longest_input=max(*lengths, *(len(example) for part in encoded.values() for example in part.examples)),
            seed=self.recipe.seeds.initialization,
            tokenize=material.tokenize,
        )
        untouched = {}
        if score_base and not base.head:  # all that answers in it is pretrained
            for split in self.scored:
                records = self._predict(material, encoded, base.model, split)
                untouched[split] = scoring.score(material.task, records)
        model = apply_method(self.recipe, base, plan)
        parameters = count_parameters(model, base)
        if self.sharding is not None:
            self.sharding.shard(model, device_mesh(self.accelerator.device))
        self._say(summary.model_lines(self.recipe, parameters, self.accelerator, self.environment))
        return PreparedModel(base, model, examples, parameters, untouched)

    def _trained(
        self,
        material: Workload,
        encoded: Mapping[str, Encoded],
        ready: PreparedModel,
        keeper: CheckpointCallback,
        resumed: Snapshot | None,
    ) -> TrainLog:
        task = material.task
        self.screen.selection = task.selection
        log = loop.train(
            ready.model,
            method=self.recipe.method,
            task=task,
            examples=ready.examples,
            padding_token=material.tokenizer.pad_token_id,
            settings=self.recipe.training,
            learning_rate=self.recipe.learning_rate,
            seeds=self.recipe.seeds,
            accelerator=self.accelerator,
            autocast=self._autocast,
            evaluate=lambda: scoring.selectable(task, self._predict(material, encoded, ready.model, "validation")),
            observer=Observers(self.screen, self.tracking),
            keeper=keeper,
            resumed=resumed,
            zero=self.zero,
            precision=self.precision,
        )
        self.screen.finished()
        return log

    def _saved(
        self,
        material: Workload,
        encoded: Mapping[str, Encoded],
        model: torch.nn.Module,
        log: TrainLog,
        predictions: Mapping[str, Records],
    ) -> int:
        """Write what was trained and what it predicts; how many bytes the former takes."""
        trained = {name for name, p in model.named_parameters() if p.requires_grad}
        gather_parameters(model, {*trained, *log.unused}, keep=self.accelerator.is_main_process)
        if not self.accelerator.is_main_process:
            return 0
        card = artifact.Card(
            model=self.recipe.model,
            model_fingerprint=material.files.fingerprint,
            task=material.task,
            method=self.recipe.method,
            quantization=self.recipe.quantization,
            precision=self.precision,
            limit=material.limit,
            recipe_digest=self.recipe.digest,
        )
        scoring.write(predictions, encoded, self.folder / "predictions.jsonl")
        folder = self.folder / self.recipe.method.folder
        return artifact.save(card, model, material.tokenizer, material.files, folder)

    def _identity(self, material: Workload) -> checkpointing.Identity:
        return checkpointing.Identity(
            recipe_digest=self.recipe.digest,
            recipe=redact.redacted(self.recipe.to_record()),
            command=_command(),
            model_fingerprint=material.files.fingerprint,
            data_fingerprint=material.rows.fingerprint,
            environment=self.environment,
        )

    def _autocast(self) -> contextlib.AbstractContextManager[Any]:
        return autocast(self.precision, self.accelerator.device)

    def _say(self, lines: Iterable[tuple[str, str]]) -> None:
        for label, text in lines:
            self.screen.line(label, text)

    def _predict(
        self, material: Workload, encoded: Mapping[str, Encoded], model: torch.nn.Module, split: str
    ) -> Records:
        start = time.perf_counter()
        records = loop.predict(
            model,
            task=material.task,
            examples=encoded[split].examples,
            tokenizer=material.tokenizer,
            batch_tokens=scoring.BATCH_TOKENS,
            accelerator=self.accelerator,
            autocast=self._autocast,
        )
        self.history.evaluate_seconds += time.perf_counter() - start
        return records


def _command() -> list[str]:
    """The command line, without the path of the program on this machine."""
    return redact.redacted(["peftlab", *sys.argv[1:]])
