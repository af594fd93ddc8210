"""From a recipe to a result: the one module that knows all the parts."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from pydantic import ValidationError
from transformers import PreTrainedTokenizerBase

from peftlab import (
    artifact,
    checkpoint,
    disk,
    interruption,
    metrics,
    opening,
    out_of_memory,
    processes,
    scoring,
    secrets,
    training,
)
from peftlab.attach import apply_method, count_parameters
from peftlab.base import (
    Base,
    autocast,
    load_base,
    load_tokenizer,
    longest_input,
    refuse_unknown_tokens,
    resolve_precision,
)
from peftlab.checkpoint import Checkpoints
from peftlab.console import Screen
from peftlab.encoding import encode
from peftlab.environment import environment
from peftlab.examples import Encoded, Splits
from peftlab.history import History
from peftlab.interruption import Interrupted
from peftlab.keeper import RunKeeper
from peftlab.methods import Plan
from peftlab.model import Files
from peftlab.part import BadInput, OutOfMemory, ProcessLost
from peftlab.progress import Snapshot
from peftlab.recipe import Recipe
from peftlab.results import (
    Cost,
    Curve,
    Halving,
    Resume,
    RunResult,
    SplitCounts,
    checkpoint_folder,
    write_result,
)  # fmt: skip
from peftlab.run_folder import publish, staging
from peftlab.settings import DeviceMap, Keeping
from peftlab.sharding import Sharding, collect, in_a_row
from peftlab.tasks import Task
from peftlab.train_log import Records
from peftlab.zero import Zero


def run(
    recipe: Recipe,
    folder: Path,
    *,
    resume: bool = False,
    keeping: Keeping | None = None,
    patience: float = 30.0,
    score_base: bool = False,
    device_map: DeviceMap | None = None,
) -> RunResult:
    """Do what the recipe says and leave it in `folder`, in place of what may be there.

    `resume` goes on from the newest checkpoint beside it, if there is one. `patience` is how many minutes processes
    wait for each other. `score_base` scores the base before it is tuned, too, if it has no new head. `device_map`
    spreads the base over all GPUs of this one process.
    """
    sharding, zero = Sharding.taken_over(), Zero.taken_over()
    if score_base and (sharding is not None or zero is not None):
        raise BadInput("--score-base: of a base that is in shares it is not measured; leave one of them out")
    accelerator = processes.start(recipe, minutes=patience, sharding=sharding, zero=zero, device_map=device_map)
    with staging(folder, accelerator) as staged, Screen(silent=not accelerator.is_main_process) as screen:
        try:
            with contextlib.ExitStack() as shield:
                this = _Run(recipe, accelerator, sharding, zero, device_map, screen, staged, shield)
                result = this.result(
                    checkpoint_folder(folder), keeping or Keeping(), resume=resume, score_base=score_base
                )
                if accelerator.is_main_process:
                    write_result(result, staged)
                    publish(staged, folder)
        except Exception as error:
            reason = disk.refusal(error)
            if reason is not None:
                raise BadInput(f"--output {folder}: cannot be written: {reason}") from None
            if accelerator.num_processes > 1 and processes.lost(error):
                raise ProcessLost(
                    f"another process of this run is gone, or was silent for {patience:g} minutes "
                    f"({' '.join(str(error).split())[:120]}); what is kept can be gone on from with --resume"
                ) from None
            if not out_of_memory.caused(error):
                raise
            raise OutOfMemory(
                f"out of memory outside of the training steps: {out_of_memory.asked_for(error)}; "
                f"{out_of_memory.limits(accelerator.device)}"
            ) from None
        accelerator.wait_for_everyone()
        screen.summary(result, folder)
    accelerator.end_training()
    return result


class _Run:
    """One run, phase by phase, each on its own clock."""

    def __init__(
        self,
        recipe: Recipe,
        accelerator: Accelerator,
        sharding: Sharding | None,
        zero: Zero | None,
        device_map: DeviceMap | None,
        screen: Screen,
        folder: Path,
        shield: contextlib.ExitStack,  # put up once there is something that a signal must not lose
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
        self.shield = shield
        self.precision = resolve_precision(recipe.training.precision, accelerator.device)
        self.environment = environment(
            accelerator.device.type,
            self.precision,
            accelerator.num_processes,
            sharded=self.shared,
            zero=None if zero is None else zero.stage,
            device_map=self.device_map,
        )
        self.history = History()

    def result(self, checkpoints: Path, keeping: Keeping, *, resume: bool, score_base: bool) -> RunResult:
        start = time.perf_counter()
        with self.accelerator.main_process_first():  # one process fetches, the others find
            rows = self.recipe.rows()
            files = self.recipe.model.files()
        task = self.recipe.task.from_training(rows.rows["train"])
        task = task.fitted(row for split in rows.rows.values() for row in split)
        tokenizer = load_tokenizer(files, task)
        limit = longest_input(files, task, reserved=self.recipe.method.positions)
        encoded, skipped = self._encode(task, rows, tokenizer, limit, files)
        self._say(opening.data_lines(self.recipe, files.source, rows, encoded))
        remark = task.check_training([row for split in ("train", "replay") for row in rows.rows.get(split, [])])
        if remark is not None:
            self.screen.line("labels", remark)
        scored = ("validation", "test") if self.recipe.score_test else ("validation",)
        floors = {split: task.floor(rows.rows["train"], rows.rows[split]) for split in scored}
        scoring.check_possible(task, floors["validation"], rows.rows["validation"])
        base = load_base(
            self.recipe.model,
            files,
            task,
            self.recipe.quantization,
            # What is shared out may be too large for one device.
            device=torch.device("cpu") if self.shared else self.accelerator.device,
            compute=getattr(torch, self.precision),
            frozen=not self.recipe.method.trains_base,
            dropout=self.recipe.training.dropout,
            seed=self.recipe.seeds.initialization,
            padding_token=tokenizer.pad_token_id,
            device_map=self.device_map,
        )
        refuse_unknown_tokens(base, (example for part in encoded.values() for example in part.examples))
        examples = [example for split in ("train", "replay") if split in encoded for example in encoded[split].examples]
        examples = task.training_examples(examples, limit)
        if not examples:
            raise BadInput(f"data: the train split of {rows.source} has nothing to learn")
        steps = training.schedule_length([len(e) for e in examples], self.recipe.training, self.recipe.seeds)
        plan = Plan(
            optimizer_steps=steps,
            task_type=task.task_type,
            head=base.head,
            longest_input=max(len(e) for part in encoded.values() for e in [*part.examples, *examples]),
            seed=self.recipe.seeds.initialization,
            tokenize=lambda text: tokenizer(text, add_special_tokens=False)["input_ids"],
        )
        untouched = self._untouched(base, task, encoded, tokenizer) if score_base else {}
        model = apply_method(self.recipe, base, plan)
        parameters = count_parameters(model, base)
        if self.sharding is not None:
            self.sharding.shard(model, in_a_row(self.accelerator.device))
        self._say(opening.model_lines(self.recipe, parameters, self.accelerator, self.environment))
        self.history.load_seconds = time.perf_counter() - start - self.history.evaluate_seconds

        predict = functools.partial(self._predict, task, model, tokenizer, encoded)
        self.screen.selection = task.selection
        kept = Checkpoints(checkpoints, self._identity(files.fingerprint, rows.fingerprint), kept=keeping.kept)
        resumed = self._resumed(kept, resume=resume)
        keeper = RunKeeper(kept, keeping, self.accelerator, more=self.history.model_dump, say=self.screen.line)
        self.shield.enter_context(interruption.deferred())
        log = training.train(
            model,
            method=self.recipe.method,
            task=task,
            examples=examples,
            padding_token=tokenizer.pad_token_id,
            settings=self.recipe.training,
            learning_rate=self.recipe.learning_rate,
            seeds=self.recipe.seeds,
            accelerator=self.accelerator,
            autocast=self._autocast,
            evaluate=lambda: scoring.selectable(task, predict("validation")),
            observer=self.screen,
            keeper=keeper,
            resumed=resumed,
            zero=self.zero,
            precision=self.precision,
        )
        self.screen.finished()
        if log.unused:
            parameters = count_parameters(model, base)
            self.screen.line("frozen", f"{len(log.unused)} tensors that no forward used, e.g. {log.unused[0]}")
        predictions = {"validation": log.records}
        if self.recipe.score_test:
            try:
                predictions["test"] = predict("test")
            except Interrupted:
                keeper.stop()
        scores = {split: scoring.score(task, records) for split, records in predictions.items()}

        trained = {name for name, p in model.named_parameters() if p.requires_grad}
        collect(model, {*trained, *log.unused}, keep=self.accelerator.is_main_process)
        adapter_bytes = 0
        if self.accelerator.is_main_process:
            card = artifact.Card(
                model=self.recipe.model,
                model_fingerprint=files.fingerprint,
                task=task,
                method=self.recipe.method,
                quantization=self.recipe.quantization,
                precision=self.precision,
                limit=limit,
                recipe_digest=self.recipe.digest,
            )
            adapter_bytes = artifact.save(card, model, tokenizer, self.folder / self.recipe.method.folder)
            scoring.write(predictions, encoded, self.folder / "predictions.jsonl")
        return RunResult(
            name=self.recipe.name,
            digest=self.recipe.digest,
            recipe=secrets.redacted(self.recipe.model_dump(mode="json")),
            started=self.history.started,
            command=_command(),
            metrics=scores,
            metric_signatures=metrics.signatures(task.metrics),
            floor={split: floor for split, floor in floors.items() if floor is not None},
            untouched=untouched,
            selection=task.selection,
            selection_minimized=task.minimized,
            best_step=log.best_step if self.recipe.training.keep_best else None,
            stopped_early=log.stopped_early,
            curve=Curve(
                steps=[look.step for look in log.evaluations],
                scores=[look.scores[task.selection] for look in log.evaluations],
                losses=[look.loss for look in log.evaluations],
            ),
            parameters=parameters,
            unused=log.unused,
            method_figures=self.recipe.method.figures(model),
            fidelity=self.recipe.method.fidelity,
            cost=Cost(
                load_seconds=round(self.history.load_seconds, 3),
                train_seconds=round(log.seconds, 3),
                evaluate_seconds=round(self.history.evaluate_seconds, 3),
                optimizer_steps=len(log.steps),
                tokens=log.tokens,
                tokens_per_second=round(log.tokens / log.seconds, 1),
                padding_share=round(1 - log.tokens / log.padded_tokens, 4),
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
            model_source=files.source,
            model_fingerprint=files.fingerprint,
            data_source=rows.source,
            data_fingerprint=rows.fingerprint,
            environment=self.environment,
            resumes=self.history.resumes,
            micro_batch_halvings=[Halving(**dataclasses.asdict(halving)) for halving in log.halvings],
        )

    def _encode(
        self, task: Task, rows: Splits, tokenizer: PreTrainedTokenizerBase, limit: int, files: Files
    ) -> tuple[dict[str, Encoded], dict[str, dict[str, int]]]:
        """Examples by split, and how many rows were left out by reason."""
        encoded, skipped = {}, {}
        for split, part in rows.rows.items():
            what = f"the {split} split of {rows.source}"
            on_bad_row = self.recipe.data.on_bad_row
            encoded[split], unfit = encode(task, part, tokenizer, limit, files=files, what=what, on_bad_row=on_bad_row)
            skipped[split] = {**rows.skipped.get(split, {}), **unfit}
        return encoded, skipped

    def _identity(self, model_fingerprint: str, data_fingerprint: str) -> checkpoint.Identity:
        return checkpoint.Identity(
            recipe_digest=self.recipe.digest,
            recipe=secrets.redacted(self.recipe.model_dump(mode="json")),
            command=_command(),
            model_fingerprint=model_fingerprint,
            data_fingerprint=data_fingerprint,
            environment=self.environment,
        )

    def _resumed(self, kept: Checkpoints, *, resume: bool) -> Snapshot | None:
        """The newest state that is kept, if it is asked for and there is one."""
        with self.accelerator.main_process_first():  # which deletes what is half-written
            if self.accelerator.is_main_process:
                kept.tidy()
            found = kept.newest() if resume else None
        if found is None:
            if resume:
                checkpoint.refuse_edited(kept.folder, kept.identity)
                self.screen.line("resume", "there is nothing to go on from: it starts anew")
            elif (path := next(checkpoint.names(kept.folder), None)) is not None:
                self.screen.line("anew", f"{path.name} of an earlier attempt is here, --resume would go on from it")
            return None
        for why in found.passed_over:
            self.screen.line("damaged", why)
        remarks = checkpoint.remarks(found.manifest.identity.environment, self.environment)
        for remark in remarks:
            self.screen.line("differs", remark)
        self.screen.line("resume", f"from step {found.manifest.step}, kept {found.manifest.written}")
        step, count = found.manifest.step, self.accelerator.num_processes
        try:
            self.history.go_on(
                found.snapshot.values.get("run"), Resume(step=step, processes=count, differences=remarks)
            )
        except ValidationError:
            raise BadInput(f"--resume: {found.path} does not fit this run: it says nothing of its start") from None
        return found.snapshot

    def _autocast(self) -> contextlib.AbstractContextManager[Any]:
        return autocast(self.precision, self.accelerator.device)

    def _say(self, lines: Iterable[tuple[str, str]]) -> None:
        for label, text in lines:
            self.screen.line(label, text)

    def _untouched(
        self, base: Base, task: Task, encoded: dict[str, Encoded], tokenizer: PreTrainedTokenizerBase
    ) -> dict[str, dict[str, float]]:
        """Scores of the base as it came, if all that answers in it is pretrained."""
        if base.head:
            return {}
        splits = ("validation", "test") if self.recipe.score_test else ("validation",)
        return {
            split: scoring.score(task, self._predict(task, base.model, tokenizer, encoded, split)) for split in splits
        }

    def _predict(
        self,
        task: Task,
        model: torch.nn.Module,
        tokenizer: PreTrainedTokenizerBase,
        encoded: dict[str, Encoded],
        split: str,
    ) -> Records:
        start = time.perf_counter()
        records = training.predict(
            model,
            task=task,
            examples=encoded[split].examples,
            tokenizer=tokenizer,
            batch_tokens=scoring.BATCH_TOKENS,
            accelerator=self.accelerator,
            autocast=self._autocast,
        )
        self.history.evaluate_seconds += time.perf_counter() - start
        return records


def _command() -> list[str]:
    """The command line, without the path of the program on this machine."""
    return secrets.redacted(["peftlab", *sys.argv[1:]])
