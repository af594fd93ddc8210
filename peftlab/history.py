"""What a run has to say of itself over all its attempts; kept in its checkpoints, beside the training's state."""

from __future__ import annotations

import datetime

from pydantic import BaseModel, ConfigDict, Field

from peftlab.results import Resume


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


class History(BaseModel):
    """Of the first attempt's start, and the seconds of all attempts."""

    model_config = ConfigDict(extra="forbid")

    started: str = Field(default_factory=_now)  # UTC, ISO 8601
    load_seconds: float = 0.0
    evaluate_seconds: float = 0.0
    resumes: list[Resume] = Field(default=[])

    def go_on(self, kept: object, resume: Resume) -> None:
        """Take in what a checkpoint kept of the earlier attempts. Raises ValidationError if it is none of that."""
        past = History.model_validate(kept)
        self.started = past.started
        self.load_seconds += past.load_seconds
        self.evaluate_seconds += past.evaluate_seconds
        self.resumes = [*past.resumes, resume]
