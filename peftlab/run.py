"""From a recipe to a result: the one module that knows all the parts."""

from __future__ import annotations

import contextlib
import datetime
import errno
import json
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import filelock
import torch
from accelerate import Accelerator
from safetensors import SafetensorError
from transformers import PreTrainedTokenizerBase

from peftlab import artifact, metrics, training
from peftlab.base import Base, autocast, load_base, load_tokenizer, longest_input, resolve_precision
from peftlab.console import Screen
from peftlab.encoding import encode
from peftlab.environment import environment
from peftlab.examples import Encoded, Splits
from peftlab.methods import Plan
from peftlab.model import Files
from peftlab.part import BadInput
from peftlab.recipe import Recipe
from peftlab.results import Cost, Curve, Parameters, RunResult, SplitCounts, write_result
from peftlab.tasks import Task
from peftlab.training import Records

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def run(recipe: Recipe, folder: Path) -> RunResult:
    """Do what the recipe says and leave it in `folder`, in place of what may be there."""
    accelerator = Accelerator(mixed_precision="no")  # the precision is the recipe's, not the launcher's
    _check_processes(accelerator)
    with _staging(folder, accelerator) as staged, Screen(silent=not accelerator.is_main_process) as screen:
        try:
            result = _Run(recipe, accelerator, screen, staged).result()
            if accelerator.is_main_process:
                write_result(result, staged)
                _publish(staged, folder)
        except SafetensorError as error:  # what a full disk is to that library
            raise BadInput(f"--output {folder}: cannot be written: {error}") from None
        except OSError as error:
            if error.errno not in DISK:
                raise
            raise BadInput(f"--output {folder}: cannot be written: {error.strerror}") from None
        accelerator.wait_for_everyone()
        screen.summary(result, folder)
    accelerator.end_training()
    return result


class _Run:
    """One run, phase by phase, each on its own clock."""

    def __init__(self, recipe: Recipe, accelerator: Accelerator, screen: Screen, folder: Path) -> None:
        self.recipe = recipe
        self.accelerator = accelerator
        self.screen = screen
        self.folder = folder
        self.started = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        self.precision = resolve_precision(recipe.training.precision, accelerator.device)
        self.evaluate_seconds = 0.0

    def result(self) -> RunResult:
        start = time.perf_counter()
        with self.accelerator.main_process_first():  # one process fetches, the others find
            rows = self.recipe.rows()
            files = self.recipe.model.files()
        task = self.recipe.task.from_training(rows.rows["train"])
        task = task.fitted(row for split in rows.rows.values() for row in split)
        tokenizer = load_tokenizer(files, task)
        limit = longest_input(files, task, reserved=self.recipe.method.positions)
        encoded, skipped = self._encode(task, rows, tokenizer, limit, files)
        self._say_data(files.source, rows, encoded)
        base = load_base(
            self.recipe.model,
            files,
            task,
            self.recipe.quantization,
            device=self.accelerator.device,
            compute=getattr(torch, self.precision),
            frozen=not self.recipe.method.trains_base,
            dropout=self.recipe.training.dropout,
            seed=self.recipe.seeds.initialization,
            padding_token=tokenizer.pad_token_id,
        )
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
        model = apply_method(self.recipe, base, plan)
        parameters = count_parameters(model, base)
        self._say_model(parameters, base)
        load_seconds = time.perf_counter() - start

        predict = self._predictor(task, model, encoded, tokenizer)
        self.screen.selection = task.selection
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
            evaluate=lambda: _selectable(task, predict("validation")),
            observer=self.screen,
        )
        self.screen.finished()
        if log.unused:
            parameters = count_parameters(model, base)
            self.screen.line("frozen", f"{len(log.unused)} tensors that no forward used, e.g. {log.unused[0]}")
        predictions = {"validation": log.records}
        if self.recipe.score_test:
            predictions["test"] = predict("test")
        scores = {split: score(task, records) for split, records in predictions.items()}
        floors = {split: task.floor(rows.rows["train"], rows.rows[split]) for split in predictions}

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
            _write_predictions(predictions, self.folder / "predictions.jsonl")
        return RunResult(
            name=self.recipe.name,
            digest=self.recipe.digest,
            recipe=self.recipe.model_dump(mode="json"),
            started=self.started,
            command=_command(),
            metrics=scores,
            metric_signatures=metrics.signatures(task.metrics),
            floor={split: floor for split, floor in floors.items() if floor is not None},
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
                load_seconds=round(load_seconds, 3),
                train_seconds=round(log.seconds, 3),
                evaluate_seconds=round(self.evaluate_seconds, 3),
                optimizer_steps=len(log.steps),
                tokens=log.tokens,
                tokens_per_second=round(log.tokens / log.seconds, 1),
                padding_share=round(1 - log.tokens / log.padded_tokens, 4),
                adapter_bytes=adapter_bytes,
            ),
            splits={
                split: SplitCounts(
                    examples=len(part.examples),
                    tokens=sum(len(e) for e in part.examples),
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
            environment=environment(self.accelerator.device.type, self.precision, self.accelerator.num_processes),
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

    def _autocast(self) -> contextlib.AbstractContextManager[Any]:
        return autocast(self.precision, self.accelerator.device)

    def _predictor(
        self, task: Task, model: torch.nn.Module, encoded: dict[str, Encoded], tokenizer: PreTrainedTokenizerBase
    ) -> Callable[[str], Records]:
        def predict(split: str) -> Records:
            start = time.perf_counter()
            records = training.predict(
                model,
                task=task,
                examples=encoded[split].examples,
                tokenizer=tokenizer,
                batch_tokens=EVALUATION_TOKENS,
                accelerator=self.accelerator,
                autocast=self._autocast,
            )
            self.evaluate_seconds += time.perf_counter() - start
            return records

        return predict

    def _say_data(self, model_source: str, rows: Splits, encoded: dict[str, Encoded]) -> None:
        self.screen.line("recipe", f"{self.recipe.name}  {self.recipe.digest}")
        self.screen.line("model", model_source)
        sizes = ", ".join(
            f"{len(part.examples):,} {split} ({sum(len(e) for e in part.examples):,} tokens)"
            for split, part in encoded.items()
        )
        self.screen.line("data", f"{rows.source}: {sizes}")
        for split, count in rows.leaks.items():
            if count:
                self.screen.line(
                    "leaks",
                    f"{count:,} of {len(rows.rows[split]):,} of {split} are in train too, but for case and white space "
                    "(data.drop_leaks: true takes them out of train)",
                )

    def _say_model(self, parameters: Parameters, base: Base) -> None:
        self.screen.line(
            "method",
            f"{self.recipe.method.title}: {parameters.trainable:,} trainable of {parameters.base:,} "
            f"({parameters.share:.2%}), {parameters.head:,} of them the head",
        )
        device, processes = self.accelerator.device, self.accelerator.num_processes
        quantization = self.recipe.quantization
        held = f"base in {quantization.title}" if quantization.quantizes else "base unquantised"
        remark = quantization.remark(device.type)
        self.screen.line(
            "device",
            f"{device.type}, {processes} {'process' if processes == 1 else 'processes'}, {self.precision}, {held}"
            + (f": {remark}" if remark else ""),
        )


DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO)  # what a disk can refuse a write with
EVALUATION_TOKENS = 4096  # padding included; no gradients are kept, so larger than a training batch


def apply_method(recipe: Recipe, base: Base, plan: Plan) -> torch.nn.Module:
    """Attach the recipe's method, its values drawn from the recipe's seed whatever was drawn before."""
    reason = recipe.unsupported(base.model.config.model_type)
    if reason is not None:
        raise BadInput(f"method: {reason}")
    torch.manual_seed(plan.seed)
    try:
        model = recipe.method.apply(base.model, plan)
    except BadInput:
        raise
    except ValueError as error:  # what PEFT finds wrong with a setting
        raise BadInput(f"method: {' '.join(str(error).split())[:200]}") from None
    if recipe.training.gradient_checkpointing:
        # After the method is attached, and undone in part: both libraries make the inputs require gradients, which
        # sends the backward pass through the whole frozen trunk; non-reentrant checkpointing does without.
        if not base.model.supports_gradient_checkpointing:
            raise BadInput(f"training.gradient_checkpointing: {base.model.config.model_type} does not support it")
        base.model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        base.model.disable_input_require_grads()
    objection = recipe.task.objection(base.model)
    if objection is not None:
        raise BadInput(f"task: {objection}")
    if not any(p.requires_grad for p in model.parameters()):
        raise BadInput(f"method: {recipe.method.kind} left nothing to train in {base.files.source}")
    return model


def count_parameters(model: torch.nn.Module, base: Base) -> Parameters:
    """Trainable numbers, the method's and the head's apart."""
    trainable = {name: p.numel() for name, p in model.named_parameters() if p.requires_grad}
    head = sum(count for name, count in trainable.items() if any(f".{part}." in f".{name}" for part in base.head))
    total = sum(trainable.values())
    return Parameters(
        method=total - head, head=head, trainable=total, base=base.parameters, share=round(total / base.parameters, 6)
    )


def score(task: Task, records: Sequence[dict[str, Any]]) -> dict[str, float]:
    """The task's metrics over decoded records."""
    return metrics.score(task.metrics, task.graded(records))


def _selectable(task: Task, records: Records) -> tuple[dict[str, float], Records]:
    """Scores of the validation split, by which the best state can be chosen, and the records."""
    scores = score(task, records)
    if task.selection not in scores:
        raise BadInput(
            f"data: {task.selection} is undefined on the validation split's {len(records)} examples, "
            "so that no state can be chosen: they are too few or too much alike"
        )
    return scores, records


def _write_predictions(predictions: dict[str, Records], path: Path) -> None:
    with path.open("w", encoding="utf-8") as file:
        for split, records in predictions.items():
            for number, record in enumerate(records):
                file.write(json.dumps({"split": split, "example": number, **record}, ensure_ascii=False) + "\n")


def _command() -> list[str]:
    """The command line, without the path of the program on this machine."""
    return ["peftlab", *sys.argv[1:]]


def _check_processes(accelerator: Accelerator) -> None:
    wanted = int(os.environ.get("WORLD_SIZE", "1"))
    if accelerator.num_processes != wanted:
        raise BadInput(f"the launcher asked for {wanted} processes, but only {accelerator.num_processes} came up")


@contextlib.contextmanager
def _staging(folder: Path, accelerator: Accelerator) -> Iterator[Path]:
    """A folder beside the final one, gone if the run fails: a run folder is there whole or not at all.

    One run at a time holds it; what a run that was killed left in it is thrown away.
    """
    staged = folder.with_name(f"{folder.name}.part")
    if not accelerator.is_main_process:
        yield staged
        return
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        lock = filelock.FileLock(folder.with_name(f".{folder.name}.lock"), blocking=False)
        lock.acquire()
        shutil.rmtree(staged, ignore_errors=True)
        staged.mkdir()
    except filelock.Timeout:
        raise BadInput(f"{folder}: another process is at this run") from None
    except OSError as error:
        raise BadInput(f"--output {folder}: cannot be written: {error.strerror}") from None
    with lock:
        try:
            yield staged
        finally:
            shutil.rmtree(staged, ignore_errors=True)


def _publish(staged: Path, folder: Path) -> None:
    """Put the staged folder in the place of the old one. A kill between the renames leaves the old one as `.old`."""
    old = folder.with_name(f"{folder.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        folder.rename(old)
    staged.rename(folder)
    shutil.rmtree(old, ignore_errors=True)
