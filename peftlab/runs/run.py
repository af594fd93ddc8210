"""From a recipe to a result: load, train, predict, save. The one module that knows all the parts."""

from __future__ import annotations

import contextlib
import dataclasses
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from accelerate import Accelerator

from peftlab.data.examples import Example
from peftlab.distributed import DeviceMap
from peftlab.distributed.deepspeed import ZeroSettings
from peftlab.distributed.fsdp import FsdpSettings, device_mesh, gather_parameters
from peftlab.errors import OutOfMemoryError, ProcessLostError, UserError
from peftlab.io import atomic, redact
from peftlab.loading.attach import count_parameters, training_plan
from peftlab.loading.attention import choose_attention, current_attention, use_attention
from peftlab.loading.inputs import Inputs, read_inputs
from peftlab.loading.model import Base, refuse_unknown_tokens
from peftlab.loading.reach import measure_reach, reach_lines
from peftlab.loading.tokens import describe
from peftlab.methods import TrainingPlan
from peftlab.recipe import Recipe
from peftlab.results.environment import environment
from peftlab.results.reach import Reach
from peftlab.results.result_file import checkpoint_folder, tracking_folder, write_result
from peftlab.results.run_result import Parameters, RunResult
from peftlab.runs import artifact, initial_adapter, launch, record, scoring, summary, tracking
from peftlab.runs.console import ConsoleReporter
from peftlab.runs.initial_adapter import Origin
from peftlab.runs.launch import Placement
from peftlab.runs.record import RunData
from peftlab.runs.resume import History, resume_from
from peftlab.runs.run_folder import publish, staging
from peftlab.runs.tracking import Tracking
from peftlab.training import checkpointing, interruption, loop, out_of_memory
from peftlab.training.checkpoint_callback import CheckpointCallback
from peftlab.training.checkpointing import Checkpoints
from peftlab.training.interruption import Interrupted
from peftlab.training.precision import autocast, resolve_precision
from peftlab.training.prediction import LossTotal, predict
from peftlab.training.schedule import schedule_length
from peftlab.training.settings import CheckpointPolicy
from peftlab.training.train_log import Records, TrainLog, Validation
from peftlab.training.workload import Workload

TRAINED_SPLITS = ("train", "replay")


@dataclass(frozen=True)
class RunOptions:
    """How a run is done. None of it is part of the recipe, so none of it changes the result."""

    resume: bool = False
    """Continue from the newest checkpoint next to the folder, if there is one."""
    checkpoints: CheckpointPolicy = field(default_factory=CheckpointPolicy)
    process_timeout: float = 30.0
    """Minutes that processes wait for each other."""
    score_base: bool = False
    """Also score the base model before it is trained, if its head is pretrained."""
    device_map: DeviceMap | None = None
    """Place the layers of the base on all GPUs of this one process."""
    trust: str | None = None
    """Revision of the base's own code that may run: see `Model.files`."""
    trackers: Sequence[str] = ()
    """Experiment trackers, by Accelerate's names."""


def run(recipe: Recipe, folder: Path, options: RunOptions = RunOptions()) -> RunResult:
    """Do what the recipe says and put the result into `folder`, in place of an older one. Raises UserError."""
    fsdp, zero = FsdpSettings.from_env(), ZeroSettings.from_env()
    if options.score_base and (fsdp is not None or zero is not None):
        raise UserError("--score-base: not available for a sharded base; leave one of them out")
    accelerator = launch.init_accelerator(
        recipe,
        minutes=options.process_timeout,
        fsdp=fsdp,
        zero=zero,
        device_map=options.device_map,
        tracking=tracking.settings(options.trackers, tracking_folder(folder)),
    )
    placement = Placement(accelerator, fsdp, zero, options.device_map if torch.cuda.device_count() > 1 else None)
    with staging(folder, accelerator) as staged, ConsoleReporter(silent=not accelerator.is_main_process) as console:
        with _translated_errors(folder, accelerator, options.process_timeout), contextlib.ExitStack() as signal_guard:
            this = _Run(recipe, placement, options, console, staged, signal_guard)
            result = this.result(checkpoint_folder(folder))
            this.tracking.log_result(result)
            if accelerator.is_main_process:
                write_result(result, staged)
                publish(staged, folder)
        accelerator.wait_for_everyone()
        console.summary(result, folder, recipe.task.baseline_rule)
        this.tracking.end()
    return result


@contextlib.contextmanager
def _translated_errors(folder: Path, accelerator: Accelerator, minutes: float) -> Iterator[None]:
    """Raise what libraries raise for a full disk, a lost process or too little memory as peftlab's own errors."""
    try:
        yield
    except Exception as error:
        reason = atomic.storage_error(error)
        if reason is not None:
            raise UserError(f"--output {folder}: cannot be written: {reason}") from None
        memory = out_of_memory.is_out_of_memory(error)
        if accelerator.num_processes > 1 and launch.is_peer_failure(error) and not memory:
            raise ProcessLostError(
                f"another process of this run ended, or did not answer for {minutes:g} minutes "
                f"({' '.join(str(error).split())[:120]}); --resume continues from the last checkpoint"
            ) from None
        if not memory:
            raise
        raise OutOfMemoryError(
            f"out of memory outside of the training steps: {out_of_memory.requested(error)}; "
            f"{out_of_memory.limits(accelerator.device)}"
        ) from None


@dataclass(frozen=True)
class PreparedModel:
    """A model that is ready to train."""

    base: Base
    workload: Workload
    parameters: Parameters
    reach: Reach
    base_scores: dict[str, dict[str, float]]  # split -> metric -> value, of the base before training


class _Run:
    """One run, phase by phase, each with its own clock."""

    def __init__(
        self,
        recipe: Recipe,
        placement: Placement,
        options: RunOptions,
        console: ConsoleReporter,
        folder: Path,
        signal_guard: contextlib.ExitStack,  # entered once there is something that a signal must not lose
    ) -> None:
        self.recipe = recipe
        self.placement = placement
        self.accelerator = placement.accelerator
        self.options = options
        self.console = console
        self.folder = folder
        self.signal_guard = signal_guard
        if placement.device_map != options.device_map:
            console.line("device map", "there is one device only: --device-map has no effect")
        self.precision = resolve_precision(recipe.training.precision, self.accelerator.device)
        self.environment = environment(
            self.accelerator.device.type,
            self.precision,
            self.accelerator.num_processes,
            sharded=placement.shards_parameters,
            zero=None if placement.zero is None else placement.zero.stage,
            device_map=placement.device_map,
        )
        self.history = History()
        self.origin: Origin | None = None  # the adapter to start from
        self.tracking = Tracking(recipe, self.accelerator, console.line)

    def result(self, checkpoint_folder: Path) -> RunResult:
        start = time.perf_counter()
        inputs = read_inputs(self.recipe, self.accelerator, self.options.trust)
        self.origin = initial_adapter.find(self.recipe, inputs)
        data = self._data(inputs)
        prepared = self._prepared(data)
        self.history.load_seconds = time.perf_counter() - start - self.history.evaluate_seconds
        checkpoints = self._checkpoint_callback(data.inputs, checkpoint_folder)
        self._use_attention(prepared.base, self.history.attention)  # a checkpoint may have another one
        self.signal_guard.enter_context(interruption.deferred())
        workload = prepared.workload
        log = loop.train(workload, [self.console, self.tracking, checkpoints])
        if log.unused:
            prepared = dataclasses.replace(prepared, parameters=count_parameters(workload.model, prepared.base))
            self.console.line("frozen", f"{len(log.unused)} tensors that no forward used, e.g. {log.unused[0]}")
        predictions = {"validation": log.records}
        if self.recipe.score_test:
            try:
                predictions["test"] = self._predict(data, workload.model, "test")
            except Interrupted:
                checkpoints.on_interrupt()
        adapter_bytes = self._save(data, workload.model, log, predictions)
        return RunResult(
            command=_command(),
            metrics={split: scoring.score(data.inputs.task, records) for split, records in predictions.items()},
            base_model=prepared.base_scores,
            parameters=prepared.parameters,
            reach=prepared.reach,
            method_stats=self.recipe.method.stats(workload.model),
            cost=record.cost(self.history, log, adapter_bytes),
            environment=self.environment,
            started=self.history.started,
            resumes=self.history.resumes,
            init_from=None if self.origin is None else self.origin.record,
            **record.of_recipe(self.recipe, data.inputs.task),
            **record.of_data(data),
            **record.of_log(self.recipe, data.inputs.task, log),
        )

    def _data(self, inputs: Inputs) -> RunData:
        """Encode all splits. Raises UserError if no answer can be scored on the validation split."""
        rows, encoded, skipped = inputs.rows, {}, {}
        for split in rows.rows:
            encoded[split], unencodable = inputs.encoded(split)
            skipped[split] = {**rows.skipped.get(split, {}), **unencodable}
        self._print(summary.data_lines(self.recipe, inputs.files.source, rows, encoded))
        trained = [row for split in TRAINED_SPLITS for row in rows.rows.get(split, [])]
        remark = inputs.task.check_training_rows(trained)
        if remark is not None:
            self.console.line("labels", remark)
        return RunData(inputs, encoded, skipped, self._constant_baseline(inputs))

    def _constant_baseline(self, inputs: Inputs) -> dict[str, dict[str, float]]:
        """Scores of always giving the same answer, by split."""
        rows, task = inputs.rows.rows, inputs.task
        scores = {split: task.constant_baseline(rows["train"], rows[split]) for split in self._scored_splits}
        scoring.check_possible(task, scores["validation"], rows["validation"])
        self.console.baseline = scores["validation"] or {}
        return {split: values for split, values in scores.items() if values is not None}

    @property
    def _scored_splits(self) -> tuple[str, ...]:
        return ("validation", "test") if self.recipe.score_test else ("validation",)

    def _prepared(self, data: RunData) -> PreparedModel:
        """Load the base, attach the method and shard the model if the launcher says so."""
        inputs, encoded = data.inputs, data.encoded
        # A model that will be sharded may be too large for one device.
        device = torch.device("cpu") if self.placement.shards_parameters else self.accelerator.device
        base = inputs.base(device, self.precision, self.placement.device_map)
        new = {token.id for token in inputs.tokens if token.is_new}
        refuse_unknown_tokens(base, (example for part in encoded.values() for example in part.examples), new)
        examples = [example for split in TRAINED_SPLITS if split in encoded for example in encoded[split].examples]
        examples = inputs.task.training_examples(examples, inputs.limit)
        if not examples:
            raise UserError(f"data: the train split of {inputs.rows.source} has nothing to learn")
        if inputs.tokens:
            self.console.line("tokens", describe(inputs.tokens, examples))
        lengths = [len(example) for example in examples]
        plan = self._plan(data, base, lengths)
        self._choose_attention(base, lengths)
        base_scores = {}
        if self.options.score_base and not base.head:  # without a new head all of the base is pretrained
            for split in self._scored_splits:
                base_scores[split] = scoring.score(inputs.task, self._predict(data, base.model, split))
        left_out = self.recipe.method.left_out(base.model, plan)
        model = initial_adapter.attach(self.recipe, base, plan, self.origin)
        if self.origin is not None:
            self.console.line("init_from", initial_adapter.remarks(self.origin, self.recipe, base.head))
        parameters, reach = count_parameters(model, base), measure_reach(self.recipe.method, base, model)
        if left_out is not None:
            self.console.line("left out", left_out)
        if self.placement.fsdp is not None:
            self.placement.fsdp.shard(model, device_mesh(self.accelerator.device))
        self._print(summary.text_branch_lines(base.outside_text))
        self._print(summary.storage_lines(base.dequantized, base.read_directly))
        self._print(summary.model_lines(self.recipe, parameters, self.accelerator, self.environment))
        self._print(summary.optimizer_lines(self.recipe, model, self.accelerator))
        self._print(("reach", sentence) for sentence in reach_lines(self.recipe, base, reach))
        return PreparedModel(base, self._workload(data, model, examples), parameters, reach, base_scores)

    def _choose_attention(self, base: Base, lengths: Sequence[int]) -> None:
        """Choose the attention kernel, the same one in all processes."""
        from accelerate.utils import broadcast_object_list

        kernel = choose_attention(base.model, self.recipe.training, lengths, self.precision, self.accelerator.device)
        self._use_attention(base, broadcast_object_list([kernel])[0])

    def _use_attention(self, base: Base, kernel: str | None) -> None:
        use_attention(base.model, kernel)
        self.history.attention = current_attention(base.model)
        self.environment = self.environment.model_copy(update={"attention": self.history.attention})

    def _plan(self, data: RunData, base: Base, lengths: Sequence[int]) -> TrainingPlan:
        recipe, inputs = self.recipe, data.inputs
        return training_plan(
            recipe,
            base,
            task=inputs.task,
            tokenizer=inputs.tokenizer,
            tokens=inputs.tokens,
            optimizer_steps=schedule_length(lengths, recipe.training, recipe.seeds),
            longest_input=max(*lengths, *(len(e) for part in data.encoded.values() for e in part.examples)),
        )

    def _workload(self, data: RunData, model: torch.nn.Module, examples: Sequence[Example]) -> Workload:
        recipe, task = self.recipe, data.inputs.task
        return Workload(
            model=model,
            method=recipe.method,
            task=task,
            examples=examples,
            padding_token=data.inputs.tokenizer.pad_token_id,
            settings=recipe.training,
            learning_rate=recipe.learning_rate,
            seeds=recipe.seeds,
            accelerator=self.accelerator,
            evaluate=lambda: self._validation(data, model),
            precision=self.precision,
            zero=self.placement.zero,
        )

    def _checkpoint_callback(self, inputs: Inputs, folder: Path) -> CheckpointCallback:
        """The callback that saves checkpoints, and with `resume` continues from the newest one."""
        identity = checkpointing.Identity(
            recipe_digest=self.recipe.digest,
            recipe=redact.redacted(self.recipe.to_record()),
            command=_command(),
            model_fingerprint=inputs.files.fingerprint,
            data_fingerprint=inputs.rows.fingerprint,
            environment=self.environment,
            init_from=None if self.origin is None else self.origin.record.fingerprint,
        )
        policy, say = self.options.checkpoints, self.console.line
        checkpoints = Checkpoints(folder, identity, keep_last=policy.keep_last)
        snapshot = resume_from(
            checkpoints, self.history, self.environment, self.accelerator, resume=self.options.resume, say=say
        )
        return CheckpointCallback(
            checkpoints, policy, self.accelerator, run_values=self.history.model_dump, say=say, resume_from=snapshot
        )

    def _save(self, data: RunData, model: torch.nn.Module, log: TrainLog, predictions: Mapping[str, Records]) -> int:
        """Write the trained tensors and the predictions. Returns the bytes of the tensors, 0 on other processes."""
        trained = {name for name, p in model.named_parameters() if p.requires_grad}
        gather_parameters(model, {*trained, *log.unused}, keep=self.accelerator.is_main_process)
        if not self.accelerator.is_main_process:
            return 0
        recipe, inputs = self.recipe, data.inputs
        card = artifact.Card(
            model=recipe.model,
            model_fingerprint=inputs.files.fingerprint,
            task=inputs.task,
            method=recipe.method,
            quantization=recipe.quantization,
            precision=self.precision,
            attention=self.history.attention,
            limit=inputs.limit,
            recipe_digest=recipe.digest,
            init_from=None if self.origin is None else self.origin.record,
        )
        scoring.write(predictions, data.encoded, self.folder / "predictions.jsonl")
        return artifact.save(card, model, inputs.tokenizer, inputs.files, self.folder / recipe.method.folder)

    def _print(self, lines: Iterable[tuple[str, str]]) -> None:
        for label, text in lines:
            self.console.line(label, text)

    def _validation(self, data: RunData, model: torch.nn.Module) -> Validation:
        loss = LossTotal()
        scores, records = scoring.selectable(data.inputs.task, self._predict(data, model, "validation", loss))
        return Validation(scores, records, loss.mean)

    def _predict(self, data: RunData, model: torch.nn.Module, split: str, loss: LossTotal | None = None) -> Records:
        start = time.perf_counter()
        records = predict(
            model,
            task=data.inputs.task,
            examples=data.encoded[split].examples,
            tokenizer=data.inputs.tokenizer,
            batch_tokens=scoring.BATCH_TOKENS,
            accelerator=self.accelerator,
            autocast=lambda: autocast(self.precision, self.accelerator.device),
            loss=loss,
        )
        self.history.evaluate_seconds += time.perf_counter() - start
        return records


def _command() -> list[str]:
    """The command line, without the path of the program on this machine."""
    return redact.redacted(["peftlab", *sys.argv[1:]])
