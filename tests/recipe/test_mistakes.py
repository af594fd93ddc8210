"""Mistakes as people make them, and what the one line that answers each must contain."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer.testing
import yaml

from peftlab.cli.app import app
from peftlab.errors import UserError
from peftlab.recipe import load_recipe

BASE: dict[str, Any] = {
    "model": "sentence-transformers/all-MiniLM-L6-v2",
    "task": "sequence_classification",
    "data": {"train": "rows.jsonl"},
    "method": "lora",
}

TRAINING = {
    "num_train_epochs: 3": "use training.epochs",
    "max_steps: 100": "use training.steps",
    "per_device_train_batch_size: 8": "use training.batch_examples, the examples of one optimizer step",
    "per_device_eval_batch_size: 8": "use nothing",
    "batch_size: 8": "use training.batch_examples, the examples of one optimizer step",
    "micro_batch_size: 4": "training.accumulation for its micro-batches",
    "gradient_accumulation_steps: 4": "use training.accumulation",
    "lr: 1e-4": "use training.learning_rate",
    "learning_rte: 1e-4": "did you mean 'learning_rate'?",
    "learning_rate: '1e-4'": "without quotes: 1e-4",
    "lr_scheduler_type: cosine": "use training.schedule",
    "schedule: constant_with_warmup": "use constant, with training.warmup",
    "schedule: polynomial": "not offered; linear and cosine",
    "warmup_ratio: 0.1": "use training.warmup",
    "warmup_steps: 100": "use training.warmup, a fraction",
    "warmup: 100": "a fraction of the optimizer steps: 0.1 is a tenth of them",
    "max_grad_norm: 1.0": "use training.clip",
    "eval_steps: 100": "use training.evaluate_every",
    "evaluation_strategy: epoch": "use training.evaluate_every",
    "evaluate_every: epoch": "use null, at the end of each epoch",
    "save_steps: 10": "use the option --checkpoint-every",
    "save_total_limit: 2": "use the option --keep-checkpoints",
    "logging_steps: 10": "use nothing, every step is logged",
    "report_to: wandb": "use the option --track",
    "load_best_model_at_end: true": "use training.keep_best",
    "metric_for_best_model: f1": "use task.select_by",
    "early_stopping_patience: 3": "use training.patience",
    "patience: 0": "use null for no early stopping",
    "fp16: true": "use training.precision",
    "precision: fp16": "use bfloat16; float16 is not offered",
    "precision: bf16": "use bfloat16",
    "max_seq_length: 512": "use task.max_length",
    "cutoff_len: 512": "use task.max_length",
    "attn_implementation: sdpa": "use training.attention",
    "attention: flash_attention_2": "not offered; sdpa lets torch choose its kernel",
    "neftune_noise_alpha: 5": "use training.embedding_noise",
    "optim: adamw_torch": "use training.optimizer",
    "optimizer: adamw_torch": "use adamw",
    "optimizer: lion": "not offered; adamw is the default",
    "seed: 1": "use seeds",
    "packing: true": "use task.packing",
    "train_on_inputs: false": "causal_lm learns the answers only",
    "label_smoothing_factor: 0.1": "use task.label_smoothing",
    "deepspeed: ds.json": "accelerate launch --config_file",
    "device: cuda": "CUDA_VISIBLE_DEVICES",
    "use_cpu: true": "empty, the CPU",
    "epoch: 3": "did you mean 'epochs'?",
    "epochs: '3'": "a number is written without quotes: 3",
    "epochs: 3, steps: 100": "give epochs or steps, not both",
    "output_dir: out": "use the option --output",
    "push_to_hub: true": "not offered: upload",
    "group_by_length: true": "use nothing, it is always done",
    "rank: 8": "use method.rank",
}
METHOD = {
    "r: 8": "use method.rank",
    "lora_r: 8": "use method.rank",
    "lora_alpha: 16": "use method.alpha",
    "lora_dropout: 0.1": "use method.dropout",
    "target_modules: [q_proj]": "use method.targets",
    "lora_target: all": "use method.targets",
    "modules_to_save: [classifier]": "the task head is always trained",
    "use_dora: true": "use method.weight_decomposed",
    "initialization: eva": "not offered: it needs a pass over the training data",
    "initialization: loftq": "use zero over quantization: nf4",
    "initialization: gaussian": "use zero: random values in A",
    "use_rslora: true": "use method.rank_stabilized",
    "init_lora_weights: pissa": "use method.initialization",
    "loraplus_lr_ratio: 16": "use method.b_rate_ratio",
    "bias: all": "use method: bitfit",
    "dropout: 10": "10 percent is 0.1",
    "targets: q_proj": "a list: [q_proj]",
    "task_type: CAUSAL_LM": "use nothing, the task sets it",
    "aplha: 16": "did you mean 'alpha'?",
    "bottleneck: 16": "a key of adapter",
}
FILE = {
    "method: {kind: adapter, bottleneck_size: 64}": "use method.bottleneck",
    "method: {kind: prefix_tuning, num_virtual_tokens: 20}": "use method.length",
    "method: qlora": "use lora, with quantization: nf4",
    "method: LoRA": "did you mean 'lora'?",
    "method: dora": "{kind: lora, weight_decomposed: true}",
    "method: houlsby": "{kind: adapter, variant: houlsby}",
    "method: prefix-tuning": "did you mean 'prefix_tuning'?",
    "method: loha": "{kind: peft, type: LOHA}",
    "method: full_finetuning": "use full)",
    "method: ft": "use full)",
    "method: linear_probe": "use head)",
    "method: galore": "not offered; lora",
    "method: {rank: 8}": "needs a 'kind', one of lora",
    "method: [lora]": "without the brackets: lora",
    "quantization: 4bit": "use nf4",
    "quantization: int4": "use nf4",
    "quantization: 4": "use nf4",
    "quantization: 8bit": "use int8",
    "quantization: gptq": "not offered for training: quantization: nf4",
    "quantization: fp8": "not offered for training: quantization: nf4",
    "quantization: false": "use none, or leave the key out",
    "quantization: {load_in_4bit: true}": "use quantization: nf4",
    "quantization: {kind: nf4, bnb_4bit_use_double_quant: true}": "use quantization.double_quantization",
    "load_in_8bit: true": "use quantization: int8",
    "task: ner": "use token_classification",
    "task: text-classification": "use sequence_classification",
    "task: sentiment": "use sequence_classification",
    "task: summarization": "use seq2seq",
    "task: text-generation": "use causal_lm",
    "task: dpo": "training on preferences is not supported",
    "task: grpo": "training on preferences or rewards is not offered",
    "task: qa": "use question_answering",
    "task: mlm": "masked language modeling is not offered",
    "task: regression": "problem: regression",
    "task: image-classification": "images and audio are not offered",
    "task: {kind: causal_lm, max_length: '512'}": "without quotes: 512",
    "task: {kind: causal_lm, chat_template: chatml}": "use task.template",
    "epochs: 3": "use training.epochs",
    "learning_rate: 1e-4": "use training.learning_rate",
    "base_model: x": "use model, a Hub id or a folder",
    "dataset: x": "data.id for the Hub, data.train for your own",
    "adapter: lora": "method: lora",
    "val_set_size: 0.1": "use data.validation_share",
    "data: {path: rows.jsonl}": "data.train for your own file",
    "data: {train_file: rows.jsonl}": "use data.train)",
    "data: {train: rows.jsonl, test_size: 0.1}": "use data.test_share",
    "data: {train: rows.jsonl, validation_share: 10}": "10 percent is 0.1",
    "data: {train: rows.jsonl, text_column: sentence}": "data.columns: {text: COLUMN}",
    "data: {train: rows.jsonl, dev: x.jsonl}": "use data.validation)",
    "model: {id: a/b, torch_dtype: bfloat16}": "use training.precision",
    "model: {id: a/b, trust_remote_code: true}": "--trust-remote-code REVISION",
    "model: {path: a/b}": "use model.id",
    "model: https://example.org/a/b": "the id only: a/b",
}
COMMAND_LINE = {
    "train RECIPE": "use peftlab run RECIPE",
    "predcit RUN": "use peftlab predict",
    "generate RUN": "use peftlab predict RUN TEXT",
    "serve RUN": "not offered; peftlab merge",
    "run RECIPE --epochs 3": "use --set training.epochs=VALUE",
    "run RECIPE --lr 1e-4": "use --set training.learning_rate=VALUE",
    "run RECIPE --batch-size 8": "use --set training.batch_examples=VALUE",
    "run RECIPE --load_in_4bit": "use --set quantization=nf4",
    "run RECIPE --output_dir out": "use the option --output",
    "run --config RECIPE": "the recipe without an option",
    "run RECIPE --device cpu": "CUDA_VISIBLE_DEVICES",
    "run RECIPE --set data.train=missing.jsonl": "missing.jsonl: no such file (looked for /",
    "run RECIPE --set model=models/missing/base": "models/missing/base: no such folder (looked for /",
    "run FOLDER": "a folder; give one of the recipes in it, e.g. ",
    "run missing.yaml": "no such recipe",
}
MISTAKES = {
    **{f"training: {{{typed}}}": fix for typed, fix in TRAINING.items()},
    **{f"method: {{kind: lora, {typed}}}": fix for typed, fix in METHOD.items()},
    **FILE,
}


def write(folder: Path, typed: str = "") -> Path:
    path = folder / "mine.yaml"
    (folder / "rows.jsonl").write_text('{"text": "a", "label": "x"}\n')
    values = {key: value for key, value in BASE.items() if not typed.startswith(f"{key}:")}
    path.write_text(yaml.safe_dump(values) + typed + "\n")
    return path


@pytest.mark.parametrize("typed", MISTAKES)
def test_one_line_leads_a_mistake_in_a_recipe_to_its_fix(tmp_path: Path, typed: str) -> None:
    with pytest.raises(UserError) as error:
        load_recipe(write(tmp_path, typed))
    (line,) = str(error.value).splitlines()
    assert re.match(r".*mine\.yaml:\d+: ", line)
    assert MISTAKES[typed] in line


@pytest.mark.parametrize("typed", COMMAND_LINE)
def test_one_line_leads_a_mistake_on_the_command_line_to_its_fix(tmp_path: Path, typed: str) -> None:
    recipe = write(tmp_path)
    words = [{"RECIPE": str(recipe), "FOLDER": str(tmp_path)}.get(word, word) for word in typed.split()]
    result = typer.testing.CliRunner().invoke(app, words)
    assert result.exit_code == 2
    (line,) = result.stderr.splitlines()
    assert COMMAND_LINE[typed] in line


@pytest.mark.parametrize(
    ("typed", "wrong"),
    [
        ("task: text-classification", "use token_classification"),
        ("task: embedding_similarity", "did you mean"),
        ("quantization: int2", "did you mean"),
        ("method: abc", "did you mean"),
        ("training: {train_steps: 4}", "did you mean"),
        ("training: {batch_words: 4}", "did you mean"),
    ],
)
def test_letters_alone_lead_to_no_other_meaning(tmp_path: Path, typed: str, wrong: str) -> None:
    with pytest.raises(UserError) as error:
        load_recipe(write(tmp_path, typed))
    assert wrong not in str(error.value)


def test_refusals_come_before_torch_is_imported(tmp_path: Path) -> None:
    recipe = write(tmp_path)
    code = f"""
import sys, typer.testing
from peftlab.cli.app import app
for words in {[typed.split() for typed in COMMAND_LINE]}:
    words = [{{"RECIPE": {str(recipe)!r}, "FOLDER": {str(tmp_path)!r}}}.get(word, word) for word in words]
    assert typer.testing.CliRunner().invoke(app, words).exit_code == 2
    assert "torch" not in sys.modules, words
"""
    subprocess.run([sys.executable, "-c", code], check=True)
