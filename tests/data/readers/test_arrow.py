"""Folders written by datasets.save_to_disk."""

from pathlib import Path
from typing import Any

import datasets
import pytest

from peftlab.data.hub import Hub


@pytest.mark.parametrize("splits_saved", [True, False])
def test_the_output_of_save_to_disk_is_read(tmp_path: Path, splits_saved: bool) -> None:
    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["no", "yes"])})
    table = datasets.Dataset.from_dict({"text": [f"t{i}" for i in range(60)], "label": [0, 1] * 30}, features=features)
    saved = datasets.DatasetDict({"train": table, "dev": table.select(range(9))}) if splits_saved else table
    saved.save_to_disk(tmp_path / "saved")
    settings: dict[str, Any] = {"splits": {"validation": "dev"}} if splits_saved else {}
    splits = Hub(id=str(tmp_path / "saved"), **settings).load(("text", "label"))
    assert {row.fields["label"] for row in splits.rows["train"]} == {"no", "yes"}
    if splits_saved:
        assert [row.fields["text"] for row in splits.rows["validation"]] == [f"t{i}" for i in range(9)]
    assert splits.rows["test"][0].where.startswith(f"{tmp_path / 'saved'} train row ")
