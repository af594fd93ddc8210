"""`peftlab bench --dry-run`: measured memory, or an estimate for rows that were never run."""

import subprocess
import sys
from pathlib import Path

import pytest

from peftlab.suites.store import Record, Store
from peftlab.suites.suite import Row
from peftlab.suites.suite_file import load_suite
from tests.suites.tiny import COMPARISON, write_suite


@pytest.mark.slow
def test_memory_is_estimated_for_rows_never_run_and_torch_imported_only_for_them(tmp_path: Path) -> None:
    folder = write_suite(tmp_path, **{**COMPARISON, "trials": {"points": 1}})
    loaded = load_suite(folder)

    def record_runs(*rows: Row) -> None:
        for row in rows:
            recipe = loaded.example(row)
            values = recipe.model_dump(mode="json")
            Store(folder).write(recipe, Record(state="failed", reason="r", recipe=values, peak_rss_bytes=2**30), None)

    def dry_run() -> tuple[dict[str, str], bool]:
        """The line of each row, and whether torch was imported."""
        code = (
            f"import sys; from pathlib import Path; from peftlab.cli.bench import bench; "
            f"bench(Path({str(folder)!r}), dry_run=True); print('torch' in sys.modules)"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=600)
        assert done.returncode == 0, done.stderr
        output = done.stdout.splitlines()
        return {line.split()[0]: line for line in output if line.startswith("addresses-")}, output[-1] == "True"

    record_runs(Row("addresses", "full", "none"), Row("addresses", "lora", "none"))
    lines, imported = dry_run()
    assert imported
    assert lines["addresses-lora-none"].endswith(" 1024 MiB")
    assert lines["addresses-lora-nf4"].endswith(" MiB predicted")
    assert 30 < float(lines["addresses-lora-nf4"].split()[-3]) < 1024  # the embeddings alone are 45 MiB
    record_runs(Row("addresses", "lora", "nf4"))
    assert not dry_run()[1]
