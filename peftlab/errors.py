"""Errors a user can act on, each with the exit code of the command line."""

import difflib
from collections.abc import Iterable
from typing import ClassVar

from pydantic import ValidationError


def printable(text: str) -> str:
    r"""What a terminal obeys, as what it shows.

    >>> printable("training.a\x1b[2J\r: unknown key")
    'training.a\\x1b[2J\\r: unknown key'
    """
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


class UserError(ValueError):
    """What a user can mend, said in one line: where, what was found, what was wanted. The command line exits with 2."""

    code: ClassVar[int] = 2  # of the command line

    def __init__(self, message: str) -> None:
        super().__init__("\n".join(map(printable, message.split("\n"))))  # it may quote whatever a file holds


class DivergedError(UserError):
    """Training came to a loss or a gradient that is no number."""

    code: ClassVar[int] = 3


class OutOfMemoryError(UserError):
    """Memory ran out. Of several processes it may be one alone that says so."""

    code: ClassVar[int] = 4


class ProcessLostError(UserError):
    """Another process of the run is gone, or does not answer."""

    code: ClassVar[int] = 5


def first_error(error: ValidationError) -> str:
    """What pydantic found first, in a line: `cost.tokens: Input should be a valid integer`."""
    first = error.errors()[0]
    return f"{'.'.join(map(str, first['loc']))}: {first['msg']}".removeprefix(": ")


def nearest(word: str, known: Iterable[str]) -> str:
    """` (did you mean 'x'?)` for the known word nearest to `word`, or nothing.

    >>> nearest("lorra", ["lora", "adalora"])
    " (did you mean 'lora'?)"
    >>> nearest("zzz", ["lora"])
    ''
    """
    spelt = {candidate.lower(): candidate for candidate in known}
    close = difflib.get_close_matches(word.lower(), list(spelt), n=1, cutoff=0.6)
    return f" (did you mean {spelt[close[0]]!r}?)" if close else ""
