"""A damaged or malicious checkpoint is detected before training, and an older one is used."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import random
import shutil
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from peftlab.training.checkpointing import MANIFEST, TENSORS, VALUES, Damaged, read
from tests.faults.conftest import KILLED, Lab, counted, finished, steps

FILES = (MANIFEST, TENSORS, VALUES)


@pytest.fixture(scope="module")
def saved(lab: Lab) -> Path:
    """Output folder with checkpoints of steps 3, 4 and 5."""
    output = lab.folder / "saved"
    words = [*lab.words(output), "--checkpoint-every", "1", "--keep-checkpoints", "3"]
    assert lab.server.run(*words, faults=[["kill_at_step", 6]]).code == KILLED
    assert len(steps(output)) == 3
    return output


@pytest.fixture
def copied(saved: Path, output: Path) -> Path:
    shutil.copytree(saved, output)
    return output


def flip(path: Path, bit: int) -> None:
    content = bytearray(path.read_bytes())
    content[bit // 8 % len(content)] ^= 1 << bit % 8
    path.write_bytes(content)


def truncate(path: Path, size: int) -> None:
    path.write_bytes(path.read_bytes()[:size])


def swap(path: Path, other: Path) -> None:
    one, two = path.read_bytes(), other.read_bytes()
    path.write_bytes(two)
    other.write_bytes(one)


def link(path: Path) -> None:
    real = path.with_name(f".{path.name}.real")
    path.rename(real)
    path.symlink_to(real)


def outside_link(path: Path) -> None:
    real = path.parent.parent.parent / f"elsewhere-{path.name}"
    path.rename(real)
    path.symlink_to(real)


DAMAGES: dict[str, Callable[[Path, Path], None]] = {
    "deleted": lambda path, older: path.unlink(),
    "emptied": lambda path, older: truncate(path, 0),
    "cut in half": lambda path, older: truncate(path, path.stat().st_size // 2),
    "cut by a byte": lambda path, older: truncate(path, path.stat().st_size - 1),
    "appended to": lambda path, older: path.write_bytes(path.read_bytes() + b"\n"),
    "swapped": lambda path, older: swap(path, older),
    "replaced by an older one": lambda path, older: path.write_bytes(older.read_bytes()),
    "a link within": lambda path, older: link(path),
    "a link outside": lambda path, older: outside_link(path),
    "a folder": lambda path, older: (path.unlink(), path.mkdir())[0],
    "zeros": lambda path, older: path.write_bytes(bytes(path.stat().st_size)),
    "a device": lambda path, older: (path.unlink(), path.symlink_to("/dev/zero"))[0],
    "a pipe": lambda path, older: (path.unlink(), os.mkfifo(path))[0],
}


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_is_detected(damage: str, file: str, copied: Path) -> None:
    older, newest = steps(copied)[1:]
    DAMAGES[damage](newest / file, older / file)
    with pytest.raises(Damaged):
        read(newest)


def test_any_flipped_bit_is_detected(copied: Path) -> None:
    draw = random.Random(0)
    newest = steps(copied)[-1]
    read(newest)
    for number in range(counted(120, 2000)):
        path = newest / FILES[number % 3]
        bit = draw.randrange(8 * path.stat().st_size)
        flip(path, bit)
        with pytest.raises(Damaged):
            read(newest)
        flip(path, bit)
    read(newest)


@pytest.mark.parametrize("damage", ["renamed", "an extra file", "a link to another", "empty"])
def test_a_damaged_folder_is_detected(damage: str, copied: Path) -> None:
    newest = steps(copied)[-1]
    if damage == "renamed":
        newest = newest.rename(newest.with_name("step-00000007"))
    elif damage == "an extra file":
        (newest / "optimizer.pt").write_bytes(b"?")
    elif damage == "a link to another":
        newest = newest.rename(newest.parent.parent / "moved")
        (copied / steps(copied)[0].parent / "step-00000009").symlink_to(newest)
        newest = steps(copied)[-1]
    else:
        shutil.rmtree(newest)
        newest.mkdir()
    with pytest.raises(Damaged):
        read(newest)


@pytest.mark.parametrize("file", FILES)
def test_an_older_checkpoint_is_used_and_the_damaged_one_is_named(file: str, lab: Lab, copied: Path) -> None:
    flip(steps(copied)[-1] / file, 4001)
    done = lab.server.run(*lab.words(copied), "--resume")
    assert done.code == 0, done.err
    assert f"damaged    step-00000005: {file} " in done.out
    assert "resume     from step 4" in done.out
    assert finished(copied).digest == lab.uninterrupted().digest


def test_if_all_are_damaged_nothing_is_trained(lab: Lab, copied: Path) -> None:
    for path in steps(copied):
        (path / VALUES).unlink()
    done = lab.server.run(*lab.words(copied), "--resume", faults=[["raise_at_step", 1]])
    assert (done.code, len(done.err.splitlines())) == (2, 1)
    assert "step-00000005: state.json is missing" in done.err
    assert lab.server.run(*lab.words(copied)).code == 0
    assert finished(copied).digest == lab.uninterrupted().digest


class Bomb:
    """Creates a folder when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.path),)


def as_pickle(sign: Path) -> bytes:
    return pickle.dumps(Bomb(sign))


def as_torch_archive(sign: Path) -> bytes:
    path = sign.with_name("archive")
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", as_pickle(sign))
    return path.read_bytes()


def header(length: int, text: bytes = b"") -> bytes:
    return struct.pack("<Q", length) + text


def listing(**entry: object) -> bytes:
    text = json.dumps({"weights.x": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8], **entry}}).encode()
    return header(len(text), text) + bytes(8)


CRAFTED: dict[str, Callable[[Path], bytes]] = {
    "a pickle": as_pickle,
    "a torch archive": as_torch_archive,
    "a header of 2^63 bytes": lambda sign: header(2**63),
    "a header of 100 MB": lambda sign: header(10**8) + b"{" * 100,
    "a header past the end": lambda sign: header(200, b"{}"),
    "a header that is no JSON": lambda sign: header(4, b"{{{{"),
    "a deep header": lambda sign: header(200_000, b"[" * 200_000),
    "a shape past the data": lambda sign: listing(shape=[2**40]),
    "offsets past the end": lambda sign: listing(data_offsets=[0, 2**50]),
    "negative offsets": lambda sign: listing(data_offsets=[-8, 0]),
    "an unknown type": lambda sign: listing(dtype="OBJECT"),
    "tensors of another model": lambda sign: listing(),
    "nothing": lambda sign: b"",
}


@pytest.mark.parametrize("kind", CRAFTED)
def test_a_malicious_checkpoint_executes_nothing_and_is_refused(kind: str, lab: Lab, copied: Path) -> None:
    """Its manifest is consistent: digests detect accidents, not malice."""
    sign = copied / "executed"
    forge(steps(copied)[-1], TENSORS, CRAFTED[kind](sign))
    done = lab.server.run(*lab.words(copied), "--resume", faults=[["addresses", 3000]])
    assert not sign.exists()
    assert "Traceback" not in done.err
    if "damaged" not in done.out:  # well-formed, but of another run
        assert (done.code, len(done.err.splitlines())) == (2, 1)
        assert "does not fit this run" in done.err
    else:
        assert finished(copied).digest == lab.uninterrupted().digest


@pytest.mark.parametrize(
    "content", [b"[" * 100_000, b'{"log": 1e999999}', b"{}", b"\x80\x04K\x01.", b'{"a": ' * 50_000], ids=range(5)
)
def test_malicious_values_are_refused(content: bytes, lab: Lab, copied: Path) -> None:
    forge(steps(copied)[-1], VALUES, content)
    done = lab.server.run(*lab.words(copied), "--resume")
    assert "Traceback" not in done.err
    assert "damaged" in done.out or (done.code == 2 and "does not fit this run" in done.err)


@pytest.mark.parametrize("name", ["../../victim", "/etc/hostname", "state.pt"])
def test_a_manifest_cannot_name_files_outside_its_folder(name: str, copied: Path) -> None:
    newest = steps(copied)[-1]
    body = json.loads((newest / MANIFEST).read_bytes().splitlines()[0])
    body["files"][name] = body["files"].pop(VALUES)
    seal(newest, body)
    with pytest.raises(Damaged):
        read(newest)


def forge(path: Path, file: str, content: bytes) -> None:
    """Replace a file and put its digest into the manifest."""
    (path / file).write_bytes(content)
    body = json.loads((path / MANIFEST).read_bytes().splitlines()[0])
    body["files"][file] = {"sha256": hashlib.sha256(content).hexdigest(), "size": len(content)}
    seal(path, body)


def seal(path: Path, body: object) -> None:
    line = json.dumps(body, sort_keys=True).encode()
    (path / MANIFEST).write_bytes(line + b"\n" + hashlib.sha256(line).hexdigest().encode() + b"\n")
