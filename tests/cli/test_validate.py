"""`peftlab validate`."""

from pathlib import Path

from tests.cli.processes import peftlab

KEYS = "known are kind, rank, alpha, dropout, targets, rank_stabilized, weight_decomposed, initialization, b_rate_ratio"


def test_validate_checks_every_file_and_reports_the_invalid_ones(recipe_file: Path) -> None:
    wrong = recipe_file.with_name("wrong.yaml")
    wrong.write_text(recipe_file.read_text().replace("rank: 4", "rnak: 4"))
    done = peftlab("validate", recipe_file, wrong, recipe_file)
    assert done.returncode == 2
    assert done.stdout.count(": valid (lora, none, ") == 2
    assert done.stderr.splitlines() == [f"{wrong}:9: method.rnak: unknown key (did you mean 'rank'?); " + KEYS]
