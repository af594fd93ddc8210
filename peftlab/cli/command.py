"""Decorator of every command: quiet libraries, one line for an error, an exit code for its cause."""

from __future__ import annotations

import functools
import os
import sys
import traceback
import warnings
from collections.abc import Callable
from typing import ParamSpec

from peftlab.errors import NotProbed, OutOfMemoryError, ProcessLostError, UserError
from peftlab.io import atomic
from peftlab.io.redact import redact
from peftlab.results.environment import quiet_libraries
from peftlab.training import interruption
from peftlab.training.interruption import Interrupted

_FORMAT = warnings.formatwarning
P = ParamSpec("P")


def command(*, interrupted: str | None = None) -> Callable[[Callable[P, None]], Callable[P, None]]:
    """Turn a function into a command whose errors are one line on standard error, never a traceback.

    `interrupted` replaces the line printed after SIGINT or SIGTERM. Exit codes: 0 success, 1 a check of the command
    failed or a bug, 2 an error the user can correct, 3 training diverged, 4 out of memory, 5 another process of the run
    is gone, 130 or 143 after SIGINT or SIGTERM.

    A command module imports only what its options need, because every call of `peftlab` imports all of them. Whatever
    imports torch, transformers or numpy is imported in the function body, after this decorator has quieted it.
    """

    warnings.formatwarning = _one_line

    def decorate(function: Callable[P, None]) -> Callable[P, None]:
        @functools.wraps(function)
        def run(*args: P.args, **kwargs: P.kwargs) -> None:
            interruption.install()
            quiet_libraries()
            try:
                function(*args, **kwargs)
            except UserError as error:
                print_error(error)
                raise SystemExit(error.code) from None
            except Interrupted as error:
                print_error(error if interrupted is None else Interrupted(error.number, interrupted))
                raise SystemExit(128 + error.number) from None
            except BrokenPipeError:  # e.g. `peftlab estimate RECIPE | head`: typer ends without a message
                raise
            except Exception as error:
                user_error = _environment_error(error)
                if user_error is not None:
                    print_error(user_error)
                    raise SystemExit(user_error.code) from None
                # A bug. Its traceback may quote anything, secrets included.
                print(redact(traceback.format_exc()), end="", file=sys.stderr)
                raise SystemExit(1) from None

        return run

    return decorate


def _one_line(
    message: Warning | str, category: type[Warning], filename: str, lineno: int, line: str | None = None
) -> str:
    """A warning as it is printed: peftlab's own remarks without the place in its code."""
    if issubclass(category, NotProbed):
        return f"{redact(str(message))}\n"
    return _FORMAT(message, category, filename, lineno, line)


def print_error(error: BaseException) -> None:
    """Print an error: from the main process, and from other processes only if it is their own."""
    rank = os.environ.get("RANK", "0")
    if rank == "0":
        print(redact(str(error)), file=sys.stderr)
    elif isinstance(error, OutOfMemoryError | ProcessLostError):
        print(f"process {rank}: {redact(str(error))}", file=sys.stderr)


def _environment_error(error: Exception) -> UserError | None:
    """The user's error for a full disk or exhausted memory; None for a bug."""
    storage_error = atomic.storage_error(error)
    if storage_error is not None:
        filename = getattr(error, "filename", None)
        return UserError(f"{filename or 'a file'}: cannot be written: {storage_error}")
    if "torch" in sys.modules:
        from peftlab.training import out_of_memory

        if out_of_memory.is_out_of_memory(error):
            return OutOfMemoryError(f"out of memory: {out_of_memory.requested(error)}")
    return None
