"""SIGINT and SIGTERM: at once where nothing would be lost, at the next boundary where something would."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupted(BaseException):
    """Not an Exception, so that no library takes it for a failure of its own. The exit code is 128 + `number`."""

    def __init__(self, number: int, kept: str = "nothing new was kept") -> None:
        self.number = number
        word = "interrupted" if number == signal.SIGINT else "terminated"
        super().__init__(f"{word}: {kept}")


class _State:
    """Of the process, as signals are."""

    received: int | None = None
    deferring = False


def install() -> None:
    """Handle the signals from now on. The first one raises `Interrupted` here or later, the second exits at once."""
    _State.received, _State.deferring = None, False
    for number in SIGNALS:
        signal.signal(number, _handle)


def asked() -> int | None:
    """The signal that came, if one did."""
    return _State.received


@contextlib.contextmanager
def deferred() -> Iterator[None]:
    """While this lasts a signal is only noted, for whoever asks."""
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
