"""Durable writes: a file has its old or its new content, and a disk's errors are recognized."""

from __future__ import annotations

import errno
import hashlib
import os
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors import SafetensorError

from peftlab.errors import UserError
from peftlab.io.atomic import atomic_write, check_writable, sha256, storage_error


def test_a_write_replaces_the_file_and_leaves_no_other(tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    atomic_write(path, b"old")
    atomic_write(path, b"new")
    assert path.read_bytes() == b"new"
    assert list(tmp_path.iterdir()) == [path]
    assert sha256(path) == hashlib.sha256(b"new").hexdigest()


def test_a_failed_write_leaves_the_old_content(tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    path.write_bytes(b"old")
    program = (
        "import resource, sys; from pathlib import Path; from peftlab.io.atomic import atomic_write;"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000));"
        "atomic_write(Path(sys.argv[1]), bytes(10_000))"
    )
    ended = subprocess.run([sys.executable, "-c", program, str(path)], capture_output=True, text=True, check=False)
    assert ended.returncode != 0
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_below_a_file_is_refused_with_the_name_of_the_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    check_writable(tmp_path / "new" / "folder")
    with pytest.raises(UserError, match=r"folder: cannot be written: .*file is not a folder"):
        check_writable(tmp_path / "file" / "folder")


def test_only_errors_of_the_disk_are_storage_errors() -> None:
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert storage_error(full) == "No space left on device"
    assert storage_error(SafetensorError("I/O error")) == "I/O error"
    assert storage_error(Exception("No space left on device (os error 28)")) is not None
    assert storage_error(FileNotFoundError(errno.ENOENT, "No such file")) is None
    assert storage_error(ValueError("(os error 28)")) is None
