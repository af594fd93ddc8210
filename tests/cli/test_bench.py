"""`peftlab bench`."""

from pathlib import Path

from tests.cli.processes import refused


def test_a_dry_run_refuses_options_that_write(tmp_path: Path) -> None:
    line = refused("bench", "benchmarks/quick", "--dry-run", "--adopt", tmp_path)
    assert line == "--dry-run and --adopt: use one at a time"
