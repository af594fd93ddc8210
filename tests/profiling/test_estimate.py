"""Estimates against measurements: the memory of a step on fake tensors and of a real step."""

import gc
import importlib.util
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from accelerate import Accelerator
from torch.distributed.device_mesh import DeviceMesh

from peftlab.errors import UserError
from peftlab.loading.model import LoadOptions, load_base
from peftlab.models.model import KnownConfig, ModelFiles
from peftlab.optimizers import OPTIMIZERS
from peftlab.profiling import estimate
from peftlab.profiling.estimate import Batch
from peftlab.profiling.fake_model import fake_process_group
from peftlab.profiling.measure import memory_pass
from peftlab.profiling.memory import HostRecorder
from peftlab.profiling.profile import Memory
from peftlab.profiling.profiled_workload import attach
from peftlab.recipe import Recipe
from peftlab.tasks import TASKS as REAL_TASKS
from tests.sampling import slow_after

EXAMPLES, LENGTH = 4, 64
SHAPES: dict[str, dict[str, Any]] = {
    "encoder": {
        **{"model_type": "bert", "vocab_size": 1200, "hidden_size": 192, "num_hidden_layers": 3},
        **{"num_attention_heads": 6, "intermediate_size": 768, "max_position_embeddings": 128},
    },
    "decoder": {
        **{"model_type": "llama", "vocab_size": 1200, "hidden_size": 192, "num_hidden_layers": 3},
        **{"num_attention_heads": 6, "num_key_value_heads": 2, "intermediate_size": 512, "head_dim": 32},
        **{"max_position_embeddings": 128, "pad_token_id": 0, "tie_word_embeddings": True},
    },
    "encoder-decoder": {
        **{"model_type": "t5", "vocab_size": 1200, "d_model": 192, "d_kv": 32, "d_ff": 512, "num_layers": 2},
        **{"num_heads": 6, "decoder_start_token_id": 0, "pad_token_id": 0},
    },
}


TASKS = {"encoder": "token_classification", "decoder": "causal_lm", "encoder-decoder": "seq2seq"}


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def recipe(folder: Path, shape: str, method: Any, quantization: Any = "none", **training: object) -> Recipe:
    return Recipe.model_validate(
        {
            **{"name": "estimated", "model": str(folder), "data": "none", "task": TASKS[shape]},
            **{"method": method, "quantization": quantization},
            "training": {"precision": "float32", "attention": "sdpa", "batch_examples": EXAMPLES, **training},
        }
    )


@pytest.fixture(scope="session")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A base model with random weights of each shape."""
    folders = {}
    for name, shape in SHAPES.items():
        folders[name] = tmp_path_factory.mktemp(name)
        values = dict(shape)
        config = transformers.AutoConfig.for_model(values.pop("model_type"), **values, num_labels=3)
        auto = getattr(transformers, REAL_TASKS[TASKS[name]].auto_class)
        auto.from_config(config).save_pretrained(folders[name])
    return folders


def measured(example: Recipe, folder: Path, batch: Batch, *, mesh: DeviceMesh | None = None) -> Memory:
    """Measured memory on the batch of the estimate, of one process or sharded over `mesh`."""
    base = load_base(
        example.model,
        ModelFiles(folder=folder, source="random", fingerprint=""),
        batch.task,
        example.quantization,
        LoadOptions(device=torch.device("cpu"), compute=torch.float32, frozen=not example.method.trains_base),
    )
    profiled = attach(
        example,
        base,
        batch.local,
        task=batch.task,
        tokenizer=batch.tokenizer,
        accelerator=Accelerator(),
        precision="float32",
    )
    if mesh is not None:
        profiled = profiled.sharded(mesh)
    gc.collect()  # tensors of earlier tests that were freed during the measurement would be subtracted
    return memory_pass(profiled, HostRecorder(), evaluate=False)


LORA, ADAPTER = {"kind": "lora", "rank": 8}, {"kind": "adapter", "bottleneck": 16}
CASES = [
    (shape, method, quantization, checkpointing)
    for shape in SHAPES
    for method, quantization in [("full", "none"), *[(m, q) for m in (LORA, ADAPTER) for q in ("none", "int8", "nf4")]]
    for checkpointing in (False, True)
]
QUICK: list[tuple[str, Any, str, bool]] = [  # one of each kind; `make test-all` tries the rest
    ("encoder", "full", "none", False),
    ("encoder", LORA, "nf4", True),
    ("decoder", LORA, "int8", False),
    ("decoder", ADAPTER, "none", True),
    ("decoder", LORA, "hqq", False),
    ("encoder-decoder", LORA, "none", False),
]


def check(bases: dict[str, Path], shape: str, method: Any, quantization: str, checkpointing: bool) -> None:
    example = recipe(bases[shape], shape, method, quantization, gradient_checkpointing=checkpointing)
    config = example.model.config()
    batch = estimate.sample_batch(example, config, examples=EXAMPLES, length=LENGTH)
    check_bytes(estimate.predict(example, config, batch), measured(example, bases[shape], batch))


def check_bytes(estimated: Memory, real: Memory) -> None:
    """Weights, constants, optimizer and gradients are exact, the rest is within 5 %."""
    for name in ("base", "constants", "method", "head", "optimizer", "gradients"):
        assert getattr(estimated, name) == getattr(real, name), name
    assert estimated.activations == pytest.approx(real.activations, rel=0.05)
    assert estimated.peak == pytest.approx(real.peak, rel=0.05)


@pytest.mark.parametrize(("shape", "method", "quantization", "checkpointing"), slow_after(1, QUICK))
def test_the_estimate_is_within_five_percent_of_the_measurement(
    bases: dict[str, Path], shape: str, method: Any, quantization: str, checkpointing: bool
) -> None:
    check(bases, shape, method, quantization, checkpointing)


SCHEDULE_FREE = importlib.util.find_spec("schedulefree") is not None
OPTIMIZED = [
    (kind, method)
    for kind, part in sorted(OPTIMIZERS.items(), key=lambda item: item[0] != "adamw_8bit")
    for method in ("full", LORA)
    if kind != "adamw" and (SCHEDULE_FREE or not part.averages)
]


@pytest.mark.parametrize(
    ("kind", "method"),
    [
        *slow_after(1, [cell for cell in OPTIMIZED if cell[1] == "full"]),
        *(pytest.param(*cell, marks=pytest.mark.night) for cell in OPTIMIZED if cell[1] != "full"),
    ],
)
def test_the_state_of_every_optimizer_is_estimated_exactly(bases: dict[str, Path], kind: str, method: Any) -> None:
    constant = {"schedule": "constant"} if OPTIMIZERS[kind].averages else {}
    example = recipe(bases["encoder"], "encoder", method, optimizer=kind, **constant)
    config = example.model.config()
    batch = estimate.sample_batch(example, config, examples=EXAMPLES, length=LENGTH)
    check_bytes(estimate.predict(example, config, batch), measured(example, bases["encoder"], batch))


@pytest.mark.night
@pytest.mark.parametrize(
    ("shape", "method", "quantization", "checkpointing"), [case for case in CASES if case not in QUICK]
)
def test_every_estimate_is_within_five_percent_of_the_measurement(
    bases: dict[str, Path], shape: str, method: Any, quantization: str, checkpointing: bool
) -> None:
    check(bases, shape, method, quantization, checkpointing)


def test_a_four_bit_weight_is_dequantized_while_it_is_used(bases: dict[str, Path]) -> None:
    """With few tokens that is most of the transient memory. With a trained head alone, one operator does it."""
    example = recipe(bases["encoder"], "encoder", {"kind": "head"}, "nf4")
    config = example.model.config()
    batch = estimate.sample_batch(example, config, examples=1, length=8)
    estimated, real = estimate.predict(example, config, batch), measured(example, bases["encoder"], batch)
    assert estimated.peak == pytest.approx(real.peak, rel=0.05)
    assert estimated.transient == pytest.approx(real.transient, rel=0.05)
    assert estimated.transient > 4 * 192 * 768  # of the largest layer


def test_gradient_checkpointing_retains_nothing_of_an_adapter(bases: dict[str, Path]) -> None:
    """The recomputed pass is aborted; an earlier adapter kept its residual until the next step."""
    example = recipe(bases["decoder"], "decoder", ADAPTER, gradient_checkpointing=True)
    config = example.model.config()
    memory = estimate.predict(example, config, estimate.sample_batch(example, config, examples=2, length=32))
    assert memory.persistent < 20_000
    assert memory.retained == 0


@pytest.mark.slow
def test_accumulation_grows_until_the_batch_fits(bases: dict[str, Path]) -> None:
    example = recipe(bases["encoder"], "encoder", LORA, batch_examples=8)
    full = estimate.estimate_memory(example, limit=None, devices=1, examples=None, length=64)
    assert (full.accumulation, full.micro_batch, full.fits) == (1, 8, None)
    assert full.memory is not None
    assert full.needed is not None
    assert full.needed == full.memory.peak + full.memory.gradients  # the best state is a copy of what trains
    cut = estimate.estimate_memory(example, limit=full.needed - 1, devices=1, examples=None, length=64)
    assert (cut.accumulation, cut.micro_batch, cut.examples, cut.fits) == (2, 4, 8, True)
    assert cut.needed is not None
    assert cut.needed < full.needed
    never = estimate.estimate_memory(example, limit=1_000_000, devices=1, examples=2, length=64)
    assert (never.accumulation, never.micro_batch, never.fits) == (2, 1, False)


@pytest.mark.slow
def test_two_examples_show_that_no_accumulation_fits(bases: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    example = recipe(bases["encoder"], "encoder", LORA, batch_examples=6)
    seen: list[tuple[int, int]] = []

    def counted(cut: Recipe, config: KnownConfig, batch: Batch, *, shards: int) -> Memory:
        seen.append((len(batch.local), cut.training.accumulation))
        return predict(cut, config, batch, shards=shards)

    predict = estimate.predict
    monkeypatch.setattr(estimate, "predict", counted)
    never = estimate.estimate_memory(example, limit=1024, devices=1, examples=None, length=16)
    assert seen == [(6, 1), (2, 2)]
    assert (never.accumulation, never.micro_batch, never.fits) == (6, 1, False)
    single = recipe(bases["encoder"], "encoder", LORA, batch_examples=6, accumulation=6)
    full = estimate.estimate_memory(single, limit=None, devices=1, examples=None, length=16)
    assert full.memory is not None
    assert full.needed is not None
    assert never.needed is not None
    assert 0 <= full.needed - never.needed < full.memory.inputs


@pytest.mark.slow
def test_devices_split_a_batch(bases: dict[str, Path]) -> None:
    example = recipe(bases["encoder"], "encoder", LORA, batch_examples=4)
    alone = estimate.estimate_memory(example, limit=None, devices=1, examples=2, length=32)
    shared = estimate.estimate_memory(example, limit=None, devices=2, examples=4, length=32)
    assert alone.memory is not None
    assert alone.needed is not None
    assert shared.memory == alone.memory
    assert shared.needed == alone.needed + alone.memory.gradients  # the buckets of the all-reduce


SHARDED: list[tuple[str, Any, Any]] = [
    ("encoder", "full", "none"),
    ("encoder", LORA, {"kind": "nf4", "storage": "bfloat16"}),
    ("decoder", LORA, "none"),
    ("encoder-decoder", ADAPTER, "none"),
]


@pytest.mark.parametrize(("shape", "method", "quantization"), slow_after(1, SHARDED))
def test_the_estimate_of_a_shard_is_within_five_percent_of_the_measurement(
    bases: dict[str, Path], shape: str, method: Any, quantization: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other process does not exist: what it should send is uninitialized memory, and no loss means anything.

    Over gloo, a thread that the recorder cannot see would release what was sent.
    """
    monkeypatch.setattr(math, "isfinite", lambda number: True)
    example = recipe(bases[shape], shape, method, quantization)
    config = example.model.config()
    batch = estimate.sample_batch(example, config, examples=EXAMPLES, length=LENGTH)
    estimated = estimate.predict(example, config, batch, shards=2)
    with fake_process_group(2) as mesh:
        real = measured(example, bases[shape], batch, mesh=mesh)
    check_bytes(estimated, real)
    full = estimate.predict(example, config, batch)
    assert 2 * (estimated.base + estimated.method + estimated.head) == pytest.approx(
        full.weights - full.constants, rel=0.01
    )
    assert estimated.constants == full.constants  # each process has all constants


def test_every_quantization_has_an_estimate_or_a_reason(bases: dict[str, Path]) -> None:
    full = recipe(bases["encoder"], "encoder", "full")
    by_kind = {each.quantization: each for each in estimate.estimate(full, examples=1, length=16)}
    assert list(by_kind) == ["none", "fp4", "hqq", "int8", "nf4", "torchao_int8"]
    assert by_kind["none"].memory is not None
    assert "full fine-tuning" in str(by_kind["nf4"].unsupported)


def test_a_checkpoint_in_another_format_has_a_reason(bases: dict[str, Path], tmp_path: Path) -> None:
    config = json.loads((bases["decoder"] / "config.json").read_text())
    stored = {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}
    (tmp_path / "config.json").write_text(json.dumps({**config, "quantization_config": stored}))
    first = next(estimate.estimate(recipe(tmp_path, "decoder", LORA, "int8"), examples=1, length=16))
    assert first.memory is None
    assert "its weights are stored in nf4: set quantization: {kind: nf4," in str(first.unsupported)


@pytest.mark.slow
def test_a_base_model_that_is_not_downloaded_is_estimated_from_its_stored_config(tmp_path: Path) -> None:
    """Eight billion weights, none of them allocated."""
    example = recipe(Path("meta-llama/Llama-3.1-8B"), "decoder", LORA, "nf4", precision="bfloat16")
    estimated = estimate.estimate_memory(example, limit=24 * 2**30, devices=1, examples=1, length=64)
    assert estimated.memory is not None
    # 6.98e9 weights in linear layers at half a byte, 1.05e9 in embeddings and output layer at two.
    assert estimated.memory.base == pytest.approx(0.5 * 6.98e9 + 2 * 1.05e9, rel=0.01)
    assert estimated.memory.constants == pytest.approx(6.98e9 / 64 * (1 + 4 / 256), rel=0.01)
    assert estimated.fits


@pytest.mark.parametrize("text", ["24", "GiB", "0 GiB", "24 GiX", "-1 GiB", "nan GiB", "1e3 GiB"])
def test_a_size_without_number_or_unit_is_refused(text: str) -> None:
    with pytest.raises(UserError, match="24 GiB"):
        estimate.parse_size(text)


@pytest.mark.slow
def test_sharded_estimates_use_a_shardable_storage_of_the_quantization(bases: dict[str, Path]) -> None:
    example = recipe(bases["encoder"], "encoder", LORA)
    by_kind = {
        each.quantization: each for each in estimate.estimate(example, devices=2, sharded=True, examples=2, length=16)
    }
    assert by_kind["nf4"].memory is not None
    assert by_kind["none"].memory is not None
    assert by_kind["nf4"].memory.base < by_kind["none"].memory.base
    assert "cannot be sharded" in str(by_kind["int8"].unsupported)
    with pytest.raises(UserError, match="--devices 2"):
        next(estimate.estimate(example, sharded=True))
