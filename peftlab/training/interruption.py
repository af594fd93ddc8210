"""SIGINT and SIGTERM: end the run at once where nothing would be lost, otherwise at the next step."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupted(BaseException):
    """The run was ended by signal `number`; the exit code is 128 + `number`.

    Not an Exception, so that no library handles it as an error of its own. `saved` says what can be resumed.
    """

    def __init__(self, number: int, saved: str = "nothing new was saved") -> None:
        self.number = number
        word = "interrupted" if number == signal.SIGINT else "terminated"
        super().__init__(f"{word}: {saved}")


class _State:
    """State of the process, as signals belong to a process."""

    received: int | None = None
    deferring = False


def install() -> None:
    """Install the handlers. The first signal raises `Interrupted`, at once or deferred; the second exits at once."""
    _State.received, _State.deferring = None, False
    for number in SIGNALS:
        signal.signal(number, _handle)


def received_signal() -> int | None:
    """Number of the signal that was received, or None."""
    return _State.received


@contextlib.contextmanager
def deferred() -> Iterator[None]:
    """Context in which a signal is only recorded, for `received_signal`."""
    if _State.received is not None:
        raise Interrupted(_State.received)
    _State.deferring = True
    try:
        yield
    finally:
        _State.deferring = False


def _handle(number: int, frame: FrameType | None) -> None:
    if _State.received is not None:
        os._exit(128 + number)
    _State.received = number
    if not _State.deferring:
        raise Interrupted(number)
