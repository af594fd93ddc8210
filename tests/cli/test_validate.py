"""`peftlab validate`."""

from pathlib import Path

from peftlab.methods.lora import Lora
from tests.cli.processes import peftlab

KEYS = f"known are {', '.join(Lora.model_fields)}"


def test_validate_checks_every_file_and_reports_the_invalid_ones(recipe_file: Path) -> None:
    wrong = recipe_file.with_name("wrong.yaml")
    wrong.write_text(recipe_file.read_text().replace("rank: 4", "rnak: 4"))
    done = peftlab("validate", recipe_file, wrong, recipe_file)
    assert done.returncode == 2
    assert done.stdout.count(": valid (lora, none, ") == 2
    assert done.stderr.splitlines() == [f"{wrong}:9: method.rnak: unknown key (did you mean 'rank'?); " + KEYS]


def test_validate_refuses_a_checkpoint_in_a_format_that_nothing_here_trains_over(
    recipe_file: Path, tmp_path: Path
) -> None:
    stored = '{"model_type": "bert", "quantization_config": {"quant_method": "gptq", "bits": 4}}'
    (tmp_path / "config.json").write_text(stored)
    done = peftlab("validate", recipe_file, "--set", f"model={tmp_path}")
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    line = next(i for i, text in enumerate(recipe_file.read_text().splitlines(), 1) if text.startswith("model:"))
    reason = f"model: {tmp_path}/config.json: its weights are stored in gptq, which"
    assert done.stderr.startswith(f"{recipe_file}:{line}: {reason}")
