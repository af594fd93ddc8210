"""Metadata of Debian's packages, fetched by apt, which verifies the archive's signature and every file's sha256."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from peftlab.errors import UserError

KEYRINGS = tuple(Path(f"/usr/share/keyrings/debian-archive-keyring.{ending}") for ending in ("gpg", "pgp"))
"""Public keys of Debian's archive, from the package debian-archive-keyring."""

CONFIGURATION = Path("/etc/apt")

SOURCES = """\
Types: deb
URIs: {mirror}
Suites: {release}
Components: main
Architectures: amd64
Signed-By: {keyring}
"""


def download(release: str, languages: Sequence[str], staging: Path) -> Path:
    """Folder in `staging` with InRelease, Packages and one Translation-* per language of a release's section main.

    apt's own lists and settings are read, never written. Raises UserError where apt cannot do it.
    """
    keyring = next((path for path in KEYRINGS if path.exists()), None)
    if shutil.which("apt-get") is None or keyring is None:
        raise UserError("only Debian's apt can fetch it, which this system lacks")
    lists, folder = staging / "lists", staging / "archive"
    for path in (lists / "partial", staging / "cache", folder):
        path.mkdir(parents=True)
    sources = staging / "debian.sources"
    sources.write_text(SOURCES.format(mirror=_mirror(), release=release, keyring=keyring), encoding="utf-8")
    settings = {
        "Dir::State::Lists": lists,
        "Dir::Cache": staging / "cache",
        "Dir::Etc::SourceList": sources,
        "Dir::Etc::SourceParts": os.devnull,
        "Acquire::Languages": ",".join(languages),
        "Acquire::GzipIndexes": "false",  # some images keep compressed lists
        "Acquire::Retries": 2,
    }
    if os.geteuid() == 0:  # apt would switch to a user who cannot enter the cache folder
        settings["APT::Sandbox::User"] = "root"
    options = [part for name, value in settings.items() for part in ("-o", f"{name}={value}")]
    apt = _run(["apt-get", "update", "--quiet", "--error-on=any", *options])
    if apt.returncode:
        errors = [line[3:].strip() for line in apt.stderr.splitlines() if line.startswith(("E: ", "W: "))]
        raise UserError(f"apt-get could not fetch it ({' '.join((errors or [apt.stderr])[0].split())[:200]})")
    for name in ("InRelease", "Packages", *(f"Translation-{language}" for language in languages)):
        fetched = sorted(lists.glob(f"*_{name}"))
        if not fetched:
            raise UserError(f"apt-get fetched no {name} of {release}")
        fetched[0].rename(folder / name)
    return folder


def _mirror() -> str:
    """Address of Debian's archive in the system's own sources, in either format. Raises UserError if there is none."""
    for path in (CONFIGURATION / "sources.list", *sorted((CONFIGURATION / "sources.list.d").glob("*"))):
        text = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
        if found := re.search(r"^(?:deb\s+(?:\[[^]]*\]\s+)?|URIs:\s*)(\S+/debian)/?\s", text, re.MULTILINE):
            return found[1]
    raise UserError(f"none of apt's sources in {CONFIGURATION} is an archive of Debian")


def _run(command: Sequence[str]) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"LC_ALL": "C"}
    return subprocess.run(command, env=environment, capture_output=True, text=True, errors="replace", check=False)
