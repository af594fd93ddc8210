"""FSDP2 over gloo: two processes that hold a share of the model each train, keep and save what one process does."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from peftlab.distributed.fsdp import FsdpSettings
from peftlab.errors import UserError
from peftlab.models.tiny_model import byte_tokenizer
from tests.contract.bases import Combination, tiny
from tests.faults.conftest import COMBINATIONS, KILLED, NIGHT, Lab, both, finished, sets, steps
from tests.sampling import sampled, slow_after

FSDP = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}
COMPILER = shutil.which("g++")
NO_COMPILER = "DeepSpeed compiles its operations on a CPU, which needs g++"
SHARDABLE = [c for c in COMBINATIONS if c.precision != "int8" and c.kind != "adalora"]
SOME = [
    *("lora-none-encoder", "lora-nf4-encoder", "full-none-encoder", "prefix_tuning-none-encoder"),
    *("adapter-nf4-encoder", "bitfit-none-encoder"),
]
CHANGE = SHARDABLE if NIGHT else [c for c in SHARDABLE if str(c) in SOME]


def recipe_of(combination: Combination) -> tuple[str, ...]:
    """Without dropout, which differs between one process and two."""
    method, _ = sets(combination)
    storage = '{"kind": "nf4", "storage": "float32"}' if combination.precision == "nf4" else "none"
    method = method.replace('"dropout": 0.1', '"dropout": 0.0')
    return (method, f"quantization={storage}", "training.dropout=0.0", "training.learning_rate=5e-3")


@pytest.mark.parametrize("combination", CHANGE, ids=str)
def test_shares_train_as_the_whole_does(combination: Combination, lab: Lab, output: Path) -> None:
    recipe = recipe_of(combination)
    one = lab.whole(*recipe).result
    held = [output.with_name(f"{output.name}-held-{rank}.json") for rank in (0, 1)]
    report = {rank: [["write_held_bytes", str(path)]] for rank, path in enumerate(held)}
    done = both(lab, lab.words(output, *recipe), report, **FSDP)
    assert [d.code for d in done] == [0, 0], done
    assert "2 processes, in shares (FSDP2)" in done[0].out
    other = finished(output).result
    assert other.environment.sharded
    assert other.curve.losses == pytest.approx(one.curve.losses, abs=1e-5)
    assert other.metrics == one.metrics
    assert other.parameters == one.parameters
    for path in held:
        mine, all_of_it = json.loads(path.read_text())
        assert all_of_it / 2 <= mine < all_of_it / 2 * 1.1  # shares are of equal size, filled up where they must


@pytest.mark.parametrize(
    "options",
    [
        (
            "training.gradient_checkpointing=true",
            "training.accumulation=2",
            'quantization={"kind": "nf4", "storage": "bfloat16"}',
        ),
        pytest.param(
            ("training.adversarial=1.0", "training.embedding_noise=5", "training.layer_decay=0.8"),
            marks=pytest.mark.slow,
        ),
        pytest.param(
            ('method={"kind": "lora", "initialization": "pissa"}', "training.keep_best=true"), marks=pytest.mark.slow
        ),
    ],
    ids=str,
)
def test_shares_train_with_every_option(options: tuple[str, ...], lab: Lab, output: Path) -> None:
    recipe = ("method.dropout=0.0", "training.dropout=0.0", *options)
    one = lab.whole(*recipe).result
    done = both(lab, lab.words(output, *recipe), **FSDP, FSDP_RESHARD_AFTER_FORWARD="false")
    assert [d.code for d in done] == [0, 0], done
    other = finished(output).result
    assert other.curve.losses == pytest.approx(one.curve.losses, abs=1e-5)
    assert other.metrics == one.metrics


def test_what_is_saved_is_whole(lab: Lab, output: Path) -> None:
    """And it is what one process saves, which wrote it without knowing of shares."""
    recipe = recipe_of(next(c for c in SHARDABLE if str(c) == "full-none-encoder"))
    alone = output.with_name(f"{output.name}-alone")
    assert lab.server.run(*lab.words(alone, *recipe)).code == 0
    assert [d.code for d in both(lab, lab.words(output, *recipe), **FSDP)] == [0, 0]
    one, other = (load_file(next(folder.rglob("model.safetensors"))) for folder in (alone, output))
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        if name.endswith(".key.bias"):  # attention is the same for any: its gradient is rounding, which Adam blows up
            continue
        torch.testing.assert_close(other[name], tensor, rtol=0, atol=1e-4)


@pytest.mark.parametrize("combination", slow_after(1, [c for c in CHANGE if c.kind in ("lora", "full")]), ids=str)
def test_both_killed_they_go_on_to_the_same_bits(combination: Combination, lab: Lab, output: Path) -> None:
    method, _ = sets(combination)  # with dropout
    recipe = (method, recipe_of(combination)[1])
    whole = output.with_name(f"{output.name}-whole")
    assert [d.code for d in both(lab, lab.words(whole, *recipe), **FSDP)] == [0, 0]
    words = [*lab.words(output, *recipe), "--checkpoint-every", "1", "--resume"]
    kill = [["kill_at_step", 5]]
    assert [d.code for d in both(lab, words, {0: kill, 1: kill}, **FSDP)] == [KILLED, KILLED]
    done = both(lab, words, **FSDP)
    assert [d.code for d in done] == [0, 0], done
    assert "from step 4" in done[0].out
    assert finished(output).digest == finished(whole).digest


def test_a_state_kept_in_shares_is_none_of_whole_copies(lab: Lab, output: Path) -> None:
    words = [*lab.words(output), "--checkpoint-every", "1", "--resume"]
    kill = [["kill_at_step", 3]]
    both(lab, words, {0: kill, 1: kill}, **FSDP)
    assert steps(output)
    done = both(lab, words)
    assert done[0].code == 2  # the other may see it gone first
    assert "shards of the model: True there, False here" in done[0].err


def test_told_to_stop_both_keep_one_state_and_end(lab: Lab, output: Path) -> None:
    words = [*lab.words(output), "--checkpoint-every", "never"]
    done = both(lab, words, {1: [["signal_at_step", 4, 15]]}, **FSDP)
    assert [d.code for d in done] == [143, 143], done
    assert [path.name for path in steps(output)] == ["step-00000004"]


TEXTS = {
    "causal_lm": (
        "llama",
        "AutoModelForCausalLM",
        {"instruction": "say {}", "output": "{} {}"},
        "generate: 3, new_tokens: 6",
    ),
    "seq2seq": ("t5", "AutoModelForSeq2SeqLM", {"source": "say {}", "target": "{} {}"}, "max_new_tokens: 6, beams: 2"),
}
WRITING = """\
model: {name}
task: {{kind: {task}, {setting}}}
data: {{train: {task}.jsonl, validation: {task}.jsonl, test: {task}.jsonl}}
method: {{kind: {method}}}
training: {{steps: 2, batch_examples: 4, learning_rate: 1e-3, precision: float32}}
"""


ZERO_3 = {"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_ZERO_STAGE": "3"}


PLACES = {"fsdp2": FSDP, "zero-3": ZERO_3}


@pytest.mark.parametrize(
    ("place", "task", "method"),
    sampled([(p, t, m) for p in PLACES for t in TEXTS for m in ("lora", "full")], tuple, strength=1),
)
def test_texts_are_written_side_by_side(place: str, task: str, method: str, lab: Lab, output: Path) -> None:
    if place == "zero-3" and not COMPILER:
        pytest.skip(NO_COMPILER)
    architecture, auto, fields, setting = TEXTS[task]
    name = f"writing-{architecture}"
    if not (lab.folder / name).exists():
        sizes = {"d_model": 64, "d_kv": 16, "d_ff": 128, "num_layers": 2, "num_heads": 4, "decoder_start_token_id": 0}
        model = tiny(architecture, auto, vocab_size=512, **(sizes if task == "seq2seq" else {}))
        model.save_pretrained(lab.folder / name)
        byte_tokenizer(model.config).save_pretrained(lab.folder / name)
        rows = [{key: text.format(n, n * n) for key, text in fields.items()} for n in range(9)]
        (lab.folder / f"{task}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    recipe = lab.folder / f"{name}-{method}.yaml"
    recipe.write_text(WRITING.format(name=name, task=task, setting=setting, method=method))
    folders = [output / "one", output / "two"]
    assert lab.server.run("run", recipe, "--output", folders[0]).code == 0
    done = both(lab, ["run", recipe, "--output", folders[1]], **PLACES[place])
    assert [d.code for d in done] == [0, 0], done
    one, other = ([json.loads(line) for line in next(f.rglob("predictions.jsonl")).open()] for f in folders)
    assert [record["predicted"] for record in other] == [record["predicted"] for record in one]
    assert len(one) == 18


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
@pytest.mark.parametrize("combination", [c for c in CHANGE if c.kind in ("lora", "full")], ids=str)
def test_two_gpus_train_in_shares_as_with_copies(combination: Combination, lab: Lab, output: Path) -> None:
    recipe = recipe_of(combination)
    losses = []
    for place in ({}, FSDP):
        folder = output / f"{len(losses)}"
        done = both(lab, lab.words(folder, *recipe), ACCELERATE_USE_CPU="false", **place)
        assert [d.code for d in done] == [0, 0], done
        assert "cuda, 2 processes" in done[0].out
        losses.append(finished(folder).result.curve.losses)
    assert losses[1] == pytest.approx(losses[0], abs=1e-4)


@pytest.mark.parametrize(
    ("sets", "environment", "says"),
    [
        (["quantization=int8"], {}, "FSDP: int8 weights cannot be sharded"),
        (["quantization=nf4"], {}, "set quantization.storage: bfloat16"),
        (["method=adalora"], {}, "FSDP: AdaLoRA compares the singular values"),
        ([], {"FSDP_VERSION": "1"}, "set fsdp_version: 2"),
        ([], {"FSDP_OFFLOAD_PARAMS": "true"}, "fsdp_offload_params is not supported"),
        ([], {"FSDP_ACTIVATION_CHECKPOINTING": "true"}, "training.gradient_checkpointing: true"),
        ([], {"WORLD_SIZE": "1"}, "one process cannot shard a model"),
    ],
    ids=str,
)
def test_what_cannot_be_in_shares_is_refused_before_loading(
    sets: list[str], environment: dict[str, str], says: str, lab: Lab, output: Path
) -> None:
    done = lab.server.run(*lab.words(output, *sets), **{**FSDP, "WORLD_SIZE": "2", **environment})
    assert (done.code, done.out) == (2, "")
    assert says in done.err
    assert len(done.err.splitlines()) == 1


def test_the_launchers_switch_is_taken_over() -> None:
    environment = {**FSDP, "FSDP_RESHARD_AFTER_FORWARD": "false"}
    assert FsdpSettings.from_env(environment) == FsdpSettings(reshard=False)
    assert FsdpSettings.from_env(environment) is None  # or Accelerate would shard, too
    with pytest.raises(UserError, match="fsdp_version: 2"):
        FsdpSettings.from_env({"ACCELERATE_USE_FSDP": "1"})
