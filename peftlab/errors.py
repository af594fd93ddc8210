"""Errors a user can act on, each with the exit code of the command line."""

import difflib
from collections.abc import Iterable
from typing import ClassVar

from pydantic import ValidationError


def printable(text: str) -> str:
    r"""Escape control characters, which a terminal would obey.

    >>> printable("training.a\x1b[2J\r: unknown key")
    'training.a\\x1b[2J\\r: unknown key'
    """
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


class UserError(ValueError):
    """An error that the user can correct. The message is one line: where, what was found, what was expected."""

    code: ClassVar[int] = 2
    """Exit code of the command line."""

    def __init__(self, message: str) -> None:
        super().__init__("\n".join(map(printable, message.split("\n"))))  # a message may quote any file


class DivergedError(UserError):
    """The loss or a gradient is NaN or infinite."""

    code: ClassVar[int] = 3


class OutOfMemoryError(UserError):
    """Out of memory, perhaps in only one of several processes."""

    code: ClassVar[int] = 4


class ProcessLostError(UserError):
    """Another process of the run has ended or does not respond."""

    code: ClassVar[int] = 5


class NotProbed(UserWarning):
    """The probe of an architecture failed, for a reason that is not the user's. A remark, no verdict."""

    def __init__(self, reason: str) -> None:
        super().__init__(printable(f"not probed: {reason}"))


def first_error(error: ValidationError) -> str:
    """The first of pydantic's errors on one line: `cost.tokens: Input should be a valid integer`."""
    first = error.errors()[0]
    return f"{'.'.join(map(str, first['loc']))}: {first['msg']}".removeprefix(": ")


def nearest(word: str, options: Iterable[str]) -> str:
    """` (did you mean 'x'?)` for the option nearest to `word`; "" if none is near.

    >>> nearest("lorra", ["lora", "adalora"])
    " (did you mean 'lora'?)"
    >>> nearest("zzz", ["lora"])
    ''
    """
    spellings = {option.lower(): option for option in options}
    close = difflib.get_close_matches(word.lower(), list(spellings), n=1, cutoff=0.6)
    return f" (did you mean {spellings[close[0]]!r}?)" if close else ""
