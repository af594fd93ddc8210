"""Resuming a run, and the facts about all its attempts that are saved in its checkpoints."""

from __future__ import annotations

import datetime
from collections.abc import Callable

from accelerate import Accelerator
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from peftlab.errors import UserError
from peftlab.results.run_result import Environment, Resume
from peftlab.training import checkpointing
from peftlab.training.checkpointing import Checkpoints
from peftlab.training.state import Snapshot


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


class History(BaseModel):
    """Start of the first attempt, and seconds of all attempts."""

    model_config = ConfigDict(extra="forbid")

    started: str = Field(default_factory=_now)  # UTC, ISO 8601
    load_seconds: float = 0.0
    evaluate_seconds: float = 0.0
    attention: str | None = None
    """transformers' name of the attention kernel; a resumed run keeps it."""
    resumes: list[Resume] = Field(default=[])

    def resume_from(self, values: object, resume: Resume) -> None:
        """Add the history of earlier attempts that a checkpoint holds. Raises ValidationError if it holds none."""
        past = History.model_validate(values)
        self.started = past.started
        self.load_seconds += past.load_seconds
        self.evaluate_seconds += past.evaluate_seconds
        self.attention = past.attention or self.attention
        self.resumes = [*past.resumes, resume]


def resume_from(
    checkpoints: Checkpoints,
    history: History,
    environment: Environment,
    accelerator: Accelerator,
    *,
    resume: bool,
    say: Callable[[str, str], None],
) -> Snapshot | None:
    """The newest saved state if `resume` is set and there is one; `history` then includes the earlier attempts.

    Raises UserError if the checkpoints belong to another run.
    """
    with accelerator.main_process_first():  # the main process deletes what is half-written
        if accelerator.is_main_process:
            checkpoints.tidy()
        checkpoint = checkpoints.newest() if resume else None
    if checkpoint is None:
        if resume:
            checkpointing.refuse_edited(checkpoints.folder, checkpoints.identity)
            say("resume", "no checkpoint found: starting from scratch")
        elif (path := next(checkpointing.names(checkpoints.folder), None)) is not None:
            say("restart", f"starting from scratch; --resume would continue from {path.name} of an earlier attempt")
        return None
    manifest = checkpoint.manifest
    for reason in checkpoint.skipped:
        say("damaged", reason)
    remarks = checkpointing.remarks(manifest.identity.environment, environment)
    for remark in remarks:
        say("differs", remark)
    say("resume", f"from step {manifest.step}, saved {manifest.written}")
    this = Resume(step=manifest.step, processes=accelerator.num_processes, differences=remarks)
    try:
        history.resume_from(checkpoint.snapshot.values.get("run"), this)
    except ValidationError:
        raise UserError(f"--resume: {checkpoint.path} does not fit this run: it lacks the start time") from None
    return checkpoint.snapshot
