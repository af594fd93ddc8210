"""Collecting a run: result and predictions are read from its folder."""

import json
import shutil
from pathlib import Path

from peftlab.suites.collect import collect


def test_texts_may_hold_other_line_separators(stored_run: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(stored_run.with_name("runs") / "one", tmp_path / "one"))
    record, predictions = collect(folder)
    path = folder / "predictions.jsonl"
    first, *others = path.read_text().split("\n")
    altered = json.loads(first)
    altered["tokens"][0] = "caf\x85e\u2028"  # Rotten Tomatoes has such
    path.write_text("\n".join([json.dumps(altered, ensure_ascii=False), *others]))
    assert collect(folder) == (record, predictions)
