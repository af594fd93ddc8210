"""result.json: version 2, and version 1 read into it."""

import json
from pathlib import Path

import pytest

from peftlab.errors import UserError
from peftlab.results.result_file import read_result
from peftlab.results.run_result import RunResult
from peftlab.results.version_1 import RENAMED

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
VERSION_1 = Path(__file__).with_name("version_1.json")


def test_a_version_1_file_equals_its_version_2_rewrite(tmp_path: Path) -> None:
    stored = json.loads(VERSION_1.read_text())
    result = read_result(VERSION_1)
    rewrite = tmp_path / "result.json"
    rewrite.write_text(result.model_dump_json())
    assert stored["version"] == 1
    assert json.loads(rewrite.read_text())["version"] == 2
    assert read_result(rewrite) == result
    for old, new in RENAMED.items():
        value, renamed = stored, result.model_dump(mode="json")
        for old_key, new_key in zip(old.split("."), new.split("."), strict=True):
            value, renamed = value[old_key], renamed[new_key]
        assert value, f"{old} is empty in the file: it shows nothing"
        assert renamed == value


@pytest.mark.parametrize("name", RENAMED)
def test_version_2_refuses_a_name_of_version_1(name: str, tmp_path: Path) -> None:
    values = read_result(VERSION_1).model_dump(mode="json")
    *parents, key = name.split(".")
    inner = values
    for parent in parents:
        inner = inner[parent]
    inner[key] = {}
    (tmp_path / "result.json").write_text(json.dumps(values))
    with pytest.raises(UserError, match=rf"not a result of version 2 or older: {name}: Extra inputs"):
        read_result(tmp_path)


def test_every_committed_result_loads() -> None:
    runs = sorted(BENCHMARKS.glob("recipes/*/*/result.json"))
    records = [path for path in sorted(BENCHMARKS.glob("*/results/*.json")) if json.loads(path.read_text())["result"]]
    assert runs
    assert records
    for path in runs:
        read_result(path)
    for path in records:
        RunResult.model_validate_json(json.dumps(json.loads(path.read_text())["result"]))
