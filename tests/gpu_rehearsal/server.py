"""A process that simulates a GPU, imports everything once and forks a child per request."""

from __future__ import annotations

import json
import os
import signal
import sys
import traceback
from typing import Any

from tests.gpu_rehearsal import simulated_cuda

LIMIT = 240  # seconds of one request


def serve() -> None:
    """Answer requests, one JSON object per line of standard input, with one line each.

    `{"function", "arguments", "gpus", "bfloat16", "plant"}` calls a function of walk.py in a child; the answer is
    `{"value"}` or `{"error"}`, a traceback.
    """
    try:
        simulated_cuda.install()
    except simulated_cuda.CannotBuildError as error:
        print(json.dumps({"skip": str(error)}), flush=True)
        return
    from peftlab.results.environment import quiet_libraries

    quiet_libraries()
    import torch

    torch.set_num_threads(1)
    from tests.command_server import import_all
    from tests.gpu_rehearsal import walk  # noqa: F401

    import_all()
    print(json.dumps({"ready": True}), flush=True)
    for line in sys.stdin:
        print(_in_child(json.loads(line)), flush=True)


def _in_child(request: dict[str, Any]) -> str:
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        signal.alarm(LIMIT)
        silent = os.open(os.devnull, os.O_RDWR)
        os.dup2(silent, 0)
        os.dup2(silent, 1)
        with os.fdopen(writing, "w") as pipe:
            pipe.write(json.dumps(_call(request)))
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        answer = pipe.read()
    _, status = os.waitpid(child, 0)
    return answer or json.dumps({"error": f"the process ended with status {os.waitstatus_to_exitcode(status)}"})


def _call(request: dict[str, Any]) -> dict[str, Any]:
    from tests.gpu_rehearsal import walk

    try:
        simulated_cuda.set_devices(request["gpus"], bfloat16=request["bfloat16"])
        if request["plant"]:
            getattr(walk, request["plant"])()
        return {"value": getattr(walk, request["function"])(**request["arguments"])}
    except BaseException:
        return {"error": traceback.format_exc()}


if __name__ == "__main__":
    serve()
