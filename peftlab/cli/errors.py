"""How a command ends that cannot do what was asked: one line on standard error, and an exit code that says why."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager

from peftlab.errors import OutOfMemoryError, ProcessLostError, UserError
from peftlab.io import atomic
from peftlab.io.redact import redact
from peftlab.training import interruption
from peftlab.training.interruption import Interrupted


@contextmanager
def mistakes_in_a_line(kept: str | None = None) -> Iterator[None]:
    """What went wrong is a line on standard error, never a traceback; `kept` is what is said there after a signal.

    The exit code is 2 for bad input, 3 if training diverged, 4 if memory ran out, 5 if another process of the run is
    gone, 130 or 143 after SIGINT or SIGTERM.
    """
    interruption.install()
    try:
        yield
    except UserError as error:
        _complain(error)
        raise SystemExit(error.code) from None
    except Interrupted as error:
        _complain(error if kept is None else Interrupted(error.number, kept))
        raise SystemExit(128 + error.number) from None
    except BrokenPipeError:  # e.g. `peftlab plan RECIPE | head`: typer ends without a word
        raise
    except Exception as error:
        known = _of_the_machine(error)
        if known is not None:
            _complain(known)
            raise SystemExit(known.code) from None
        print(redact(traceback.format_exc()), end="", file=sys.stderr)  # a bug: its traceback may quote anything
        raise SystemExit(1) from None


def _of_the_machine(error: Exception) -> UserError | None:
    """What is nobody's bug: a disk that takes no more, memory that is not there."""
    refusal = atomic.storage_error(error)
    if refusal is not None:
        named = getattr(error, "filename", None)
        return UserError(f"{named or 'a file'}: cannot be written: {refusal}")
    if "torch" in sys.modules:
        from peftlab.training import out_of_memory

        if out_of_memory.caused(error):
            return OutOfMemoryError(f"out of memory: {out_of_memory.asked_for(error)}")
    return None


def _complain(error: BaseException) -> None:
    """Of several processes the first one speaks, and one whose trouble is its own."""
    rank = os.environ.get("RANK", "0")
    if rank == "0":
        print(redact(str(error)), file=sys.stderr)
    elif isinstance(error, OutOfMemoryError | ProcessLostError):
        print(f"process {rank}: {redact(str(error))}", file=sys.stderr)
