"""apt fetches and verifies a release of Debian. The archive and its key are made by the tests; apt and gpg are real."""

import hashlib
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from peftlab.errors import UserError
from peftlab.sources import apt, assets
from peftlab.sources.assets import Asset

MD5 = f"Description-md5: {'0' * 32}\n"
FILES = {
    "binary-amd64/Packages": f"Package: ed\nVersion: 1\nArchitecture: amd64\nDescription: editor\n{MD5}",
    "i18n/Translation-en": f"Package: ed\n{MD5}Description-en: editor\n It edits.\n",
    "i18n/Translation-de": f"Package: ed\n{MD5}Description-de: Texteditor\n Er editiert.\n",
}
needs_apt = pytest.mark.skipif(
    shutil.which("apt-get") is None or shutil.which("gpg") is None, reason="no apt-get or no gpg on this system"
)


@pytest.fixture
def archive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A signed archive of one package, the only one in apt's sources. The asset cache is empty."""
    folder = tmp_path / "mirror" / "debian" / "dists" / "bookworm"
    for name, content in FILES.items():
        (folder / "main" / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / "main" / name).write_text(content)
    hashes = "".join(
        f" {hashlib.sha256(content.encode()).hexdigest()} {len(content)} main/{name}\n"
        for name, content in FILES.items()
    )
    about = "Origin: Debian\nSuite: bookworm\nCodename: bookworm\nDate: Sat, 10 Jun 2023 09:00:00 UTC\n"
    (folder / "Release").write_text(f"{about}Architectures: amd64\nComponents: main\nSHA256:\n{hashes}")
    keys = tmp_path / "keys"
    keys.mkdir(mode=0o700)
    gpg = ["gpg", "--homedir", str(keys), "--batch", "--quiet", "--passphrase", ""]
    subprocess.run([*gpg, "--quick-generate-key", "archive@example.org", "ed25519", "sign", "never"], check=True)
    subprocess.run([*gpg, "--output", str(tmp_path / "keyring.gpg"), "--export"], check=True)
    subprocess.run([*gpg, "--output", str(folder / "InRelease"), "--clearsign", str(folder / "Release")], check=True)
    subprocess.run(["gpgconf", "--homedir", str(keys), "--kill", "all"], check=True)
    sources = tmp_path / "apt" / "sources.list.d"
    sources.mkdir(parents=True)
    (sources / "other.list").write_text("deb [arch=amd64] https://example.org/other stable main\n")
    (sources / "own.sources").write_text(f"Types: deb\nURIs: file:{tmp_path}/mirror/debian/\nSuites: trixie\n")
    monkeypatch.setattr(apt, "CONFIGURATION", tmp_path / "apt")
    monkeypatch.setattr(apt, "KEYRINGS", (tmp_path / "absent.gpg", tmp_path / "keyring.gpg"))
    monkeypatch.setenv("PEFTLAB_CACHE", str(tmp_path / "cache"))
    return folder


def asset() -> Asset:
    found = assets.find("package-descriptions-en-de")
    assert found is not None
    return found


@needs_apt
def test_pairs_are_fetched_once_and_read_from_the_cache_where_there_is_no_apt(
    archive: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = assets.fetch(asset(), lambda line: None)
    lines = (folder / "pairs.jsonl").read_text().splitlines()
    assert lines == [
        '{"en": "editor", "de": "Texteditor", "package": "ed", "source_package": "ed"}',
        '{"en": "It edits.", "de": "Er editiert.", "package": "ed", "source_package": "ed"}',
    ]
    assert {path.name for path in folder.iterdir()} == {assets.MANIFEST, "pairs.jsonl"}
    monkeypatch.setenv("PATH", os.devnull)
    assert assets.fetch(asset(), lambda line: None) == folder


@pytest.mark.slow
@needs_apt
def test_a_file_that_the_release_does_not_sign_is_refused_and_leaves_nothing(archive: Path) -> None:
    (archive / "main" / "i18n" / "Translation-de").write_text(FILES["i18n/Translation-de"].replace("Text", "Test"))
    with pytest.raises(UserError, match=r"apt-get could not fetch it \(.*[Hh]ash") as caught:
        assets.fetch(asset(), lambda line: None)
    assert "\n" not in str(caught.value)
    assert [path for path in assets.cache_folder().glob("*") if path.suffix != ".lock"] == []


@pytest.mark.slow
@needs_apt
def test_a_release_signed_by_another_key_is_refused(archive: Path) -> None:
    (archive / "InRelease").write_text((archive / "InRelease").read_text().replace("2023", "2024"))
    with pytest.raises(UserError, match="apt-get could not fetch it"):
        assets.fetch(asset(), lambda line: None)


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("KEYRINGS", (), "only Debian's apt can fetch it, which this system lacks"),
        ("CONFIGURATION", Path("/nonexistent"), "none of apt's sources in /nonexistent is an archive of Debian"),
    ],
)
def test_elsewhere_than_on_debian_one_line_says_what_serves_instead(
    name: str, value: object, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PEFTLAB_CACHE", str(tmp_path))
    monkeypatch.setattr(apt, "KEYRINGS", (tmp_path,))
    monkeypatch.setattr(apt.shutil, "which", lambda name: name)
    monkeypatch.setattr(apt, name, value)
    with pytest.raises(UserError) as caught:
        assets.fetch(asset(), lambda line: None)
    assert str(caught.value) == (
        f"debian/package-descriptions-en-de: {reason}; use a file of your own pairs, "
        "data: {train: pairs.jsonl, columns: {source: en, target: de}}, instead"
    )
