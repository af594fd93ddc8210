"""What a run has to say of itself over all its attempts, kept in its checkpoints; and how one goes on from another."""

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
    """Of the first attempt's start, and the seconds of all attempts."""

    model_config = ConfigDict(extra="forbid")

    started: str = Field(default_factory=_now)  # UTC, ISO 8601
    load_seconds: float = 0.0
    evaluate_seconds: float = 0.0
    resumes: list[Resume] = Field(default=[])

    def resume_from(self, kept: object, resume: Resume) -> None:
        """Take in what a checkpoint kept of the earlier attempts. Raises ValidationError if it is none of that."""
        past = History.model_validate(kept)
        self.started = past.started
        self.load_seconds += past.load_seconds
        self.evaluate_seconds += past.evaluate_seconds
        self.resumes = [*past.resumes, resume]


def resume_from(
    kept: Checkpoints,
    history: History,
    environment: Environment,
    accelerator: Accelerator,
    *,
    resume: bool,
    say: Callable[[str, str], None],
) -> Snapshot | None:
    """The newest state that is kept, if it is asked for and there is one; `history` takes in its past.

    Raises UserError if what is kept is of another run.
    """
    with accelerator.main_process_first():  # which deletes what is half-written
        if accelerator.is_main_process:
            kept.tidy()
        found = kept.newest() if resume else None
    if found is None:
        if resume:
            checkpointing.refuse_edited(kept.folder, kept.identity)
            say("resume", "there is nothing to go on from: it starts anew")
        elif (path := next(checkpointing.names(kept.folder), None)) is not None:
            say("anew", f"{path.name} of an earlier attempt is here, --resume would go on from it")
        return None
    for why in found.passed_over:
        say("damaged", why)
    remarks = checkpointing.remarks(found.manifest.identity.environment, environment)
    for remark in remarks:
        say("differs", remark)
    say("resume", f"from step {found.manifest.step}, kept {found.manifest.written}")
    this = Resume(step=found.manifest.step, processes=accelerator.num_processes, differences=remarks)
    try:
        history.resume_from(found.snapshot.values.get("run"), this)
    except ValidationError:
        raise UserError(f"--resume: {found.path} does not fit this run: it says nothing of its start") from None
    return found.snapshot
