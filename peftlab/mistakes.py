"""How a command ends that cannot do what was asked: one line on standard error, and an exit code that says why."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager

from peftlab import interruption
from peftlab.interruption import Interrupted
from peftlab.part import BadInput, OutOfMemory, ProcessLost
from peftlab.secrets import redact


@contextmanager
def mistakes_in_a_line() -> Iterator[None]:
    """What went wrong is a line on standard error, never a traceback.

    The exit code is 2 for bad input, 3 if training diverged, 4 if memory ran out, 5 if another process of the run is
    gone, 130 or 143 after SIGINT or SIGTERM.
    """
    interruption.install()
    try:
        yield
    except BadInput as error:
        _complain(error)
        raise SystemExit(error.code) from None
    except Interrupted as error:
        _complain(error)
        raise SystemExit(128 + error.number) from None
    except BrokenPipeError:  # e.g. `peftlab plan RECIPE | head`: typer ends without a word
        raise
    except Exception:  # a bug: its traceback may quote anything
        print(redact(traceback.format_exc()), end="", file=sys.stderr)
        raise SystemExit(1) from None


def _complain(error: BaseException) -> None:
    """Of several processes the first one speaks, and one whose trouble is its own."""
    rank = os.environ.get("RANK", "0")
    if rank == "0":
        print(redact(str(error)), file=sys.stderr)
    elif isinstance(error, OutOfMemory | ProcessLost):
        print(f"process {rank}: {redact(str(error))}", file=sys.stderr)
