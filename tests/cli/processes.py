"""`peftlab` in a process of its own, and the one line of an error."""

import os
import subprocess
import sys
from pathlib import Path

from tests.commands import Server

ROOT = Path(__file__).parents[2]


def peftlab(*words: str | Path, folder: Path = ROOT, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "peftlab", *map(str, words)],
        cwd=folder,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=300,
    )


def refused(*words: str | Path, folder: Path = ROOT, **environment: str) -> str:
    """The one line that a command with exit code 2 prints."""
    done = peftlab(*words, folder=folder, **environment)
    assert done.returncode == 2, done.stderr
    return only_line(done.stderr)


def refused_by(server: Server, *words: str | Path, **environment: str) -> str:
    """The same from a forked process, for commands that import torch."""
    done = server.run(*words, **environment)
    assert done.code == 2, done.err
    return only_line(done.err)


def only_line(stderr: str) -> str:
    assert "Traceback" not in stderr
    (line,) = stderr.splitlines()
    return line
