"""A process that imports everything once and forks a command per request: a kill costs a run, not an import."""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import signal
import sys
import traceback
from typing import Any

HEAVY = ("torch", "accelerate", "peft", "bitsandbytes", "datasets", "evaluate", "seqeval.metrics")
LIMIT = 300  # seconds; a command that hangs is ended by SIGALRM and fails its test
HEAVY_OWN = ("peftlab.cli.app", "peftlab.runs.run", "peftlab.runs.inference")


def serve() -> None:
    """Answer requests, one JSON object per line of standard input, with one line each.

    `{"words", "out", "folder", "environment", "faults"}` forks a command and answers its pid;
    `{"wait": pid}` answers the exit status of that child.
    """
    from peftlab.results.environment import quiet_libraries

    quiet_libraries()
    import torch

    torch.set_num_threads(1)
    if not torch.cuda.device_count():  # with GPUs bitsandbytes would start CUDA, and no forked process could use it
        import_all()
    print("ready", flush=True)
    for line in sys.stdin:
        order = json.loads(line)
        if "wait" in order:
            _, status = os.waitpid(order["wait"], 0)
            print(os.waitstatus_to_exitcode(status), flush=True)
            continue
        pid = os.fork()
        if pid == 0:
            child(order)
        print(pid, flush=True)


def import_all() -> None:
    for name in (*HEAVY, *HEAVY_OWN):
        importlib.import_module(name)
    for name in ("BertForTokenClassification", "AutoModelForTokenClassification", "PreTrainedTokenizerFast"):
        import transformers

        getattr(transformers, name)  # imported lazily by transformers
    from peftlab.methods.lora import Lora  # noqa: F401


def child(order: dict[str, Any]) -> None:
    """Run one command as a new interpreter would; never returns."""
    code = 70
    try:
        signal.alarm(LIMIT)
        os.setpgid(0, 0)  # its own group, so that the test can check that no process of it is left
        os.chdir(order["folder"])
        null = os.open(os.devnull, os.O_RDONLY)
        os.dup2(null, 0)
        for number, name in ((1, "stdout"), (2, "stderr")):
            file = os.open(f"{order['out']}.{name}", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
            os.dup2(file, number)
        os.environ.update(order["environment"])
        sys.argv = ["peftlab", *order["words"]]
        from tests.faults import injected

        for name, arguments in order["faults"]:
            getattr(injected, name)(*arguments)
        from peftlab.cli.app import app

        app()
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else 0 if stop.code is None else 1
    except BaseException:
        traceback.print_exc()
        code = 1
    finally:
        with contextlib.suppress(OSError, ValueError):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    serve()
