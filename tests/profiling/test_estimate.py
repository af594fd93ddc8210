"""The planner against the ledger: what a step without values would take, and what a real one takes."""

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
from peftlab.models.model import ModelFiles, Shape
from peftlab.profiling import estimate
from peftlab.profiling.estimate import Batch
from peftlab.profiling.fake_model import fake_process_group
from peftlab.profiling.measure import memory_pass, subject
from peftlab.profiling.memory import HostRecorder
from peftlab.profiling.profile import Memory
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
            **{"name": "planned", "model": str(folder), "data": "none", "task": TASKS[shape]},
            **{"method": method, "quantization": quantization},
            "training": {"precision": "float32", "batch_examples": EXAMPLES, **training},
        }
    )


@pytest.fixture(scope="session")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A base with random weights of each shape."""
    found = {}
    for name, shape in SHAPES.items():
        found[name] = tmp_path_factory.mktemp(name)
        values = dict(shape)
        config = transformers.AutoConfig.for_model(values.pop("model_type"), **values, num_labels=3)
        auto = getattr(transformers, REAL_TASKS[TASKS[name]].auto_class)
        auto.from_config(config).save_pretrained(found[name])
    return found


def measured(wanted: Recipe, folder: Path, batch: Batch, *, mesh: DeviceMesh | None = None) -> Memory:
    """The ledger's bytes on the batch that the planner takes, of one process or in shares."""
    base = load_base(
        wanted.model,
        ModelFiles(folder=folder, source="random", fingerprint=""),
        batch.task,
        wanted.quantization,
        LoadOptions(device=torch.device("cpu"), compute=torch.float32, frozen=not wanted.method.trains_base),
    )
    ready = subject(
        wanted,
        base,
        batch.share,
        task=batch.task,
        tokenizer=batch.tokenizer,
        accelerator=Accelerator(),
        precision="float32",
    )
    if mesh is not None:
        ready = ready.sharded(mesh)
    return memory_pass(ready, HostRecorder(), evaluate=False)


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
    ("encoder-decoder", LORA, "none", False),
]


def check(bases: dict[str, Path], shape: str, method: Any, quantization: str, checkpointing: bool) -> None:
    wanted = recipe(bases[shape], shape, method, quantization, gradient_checkpointing=checkpointing)
    known = wanted.model.shape()
    batch = estimate.sample_batch(wanted, known, examples=EXAMPLES, length=LENGTH)
    check_bytes(estimate.predict(wanted, known, batch), measured(wanted, bases[shape], batch))


def check_bytes(planned: Memory, real: Memory) -> None:
    """Weights, constants, optimiser and gradients to the byte, the rest within 5 %."""
    for name in ("base", "constants", "method", "head", "optimizer", "gradients"):
        assert getattr(planned, name) == getattr(real, name), name
    assert planned.activations == pytest.approx(real.activations, rel=0.05)
    assert planned.peak == pytest.approx(real.peak, rel=0.05)


@pytest.mark.parametrize(("shape", "method", "quantization", "checkpointing"), slow_after(1, QUICK))
def test_the_plan_is_within_five_percent_of_the_ledger(
    bases: dict[str, Path], shape: str, method: Any, quantization: str, checkpointing: bool
) -> None:
    check(bases, shape, method, quantization, checkpointing)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("shape", "method", "quantization", "checkpointing"), [case for case in CASES if case not in QUICK]
)
def test_the_plan_is_within_five_percent_of_the_ledger_everywhere(
    bases: dict[str, Path], shape: str, method: Any, quantization: str, checkpointing: bool
) -> None:
    check(bases, shape, method, quantization, checkpointing)


def test_a_four_bit_weight_is_whole_while_it_is_used(bases: dict[str, Path]) -> None:
    """With few tokens that is most of what comes and goes. Under a head alone one operator makes and uses it."""
    wanted = recipe(bases["encoder"], "encoder", {"kind": "head"}, "nf4")
    known = wanted.model.shape()
    batch = estimate.sample_batch(wanted, known, examples=1, length=8)
    planned, real = estimate.predict(wanted, known, batch), measured(wanted, bases["encoder"], batch)
    assert planned.peak == pytest.approx(real.peak, rel=0.05)
    assert planned.transient == pytest.approx(real.transient, rel=0.05)
    assert planned.transient > 4 * 192 * 768  # of the largest layer


def test_checkpointing_keeps_nothing_of_an_adapter_from_step_to_step(bases: dict[str, Path]) -> None:
    """The pass that is repeated is broken off, and once left the adapter its residual until the next step."""
    wanted = recipe(bases["decoder"], "decoder", ADAPTER, gradient_checkpointing=True)
    known = wanted.model.shape()
    memory = estimate.predict(wanted, known, estimate.sample_batch(wanted, known, examples=2, length=32))
    assert memory.kept < 20_000
    assert memory.held == 0


@pytest.mark.slow
def test_a_batch_is_cut_until_it_fits_and_stays_the_same_batch(bases: dict[str, Path]) -> None:
    wanted = recipe(bases["encoder"], "encoder", LORA, batch_examples=8)
    whole = estimate.estimate_memory(wanted, limit=None, devices=1, examples=None, length=64)
    assert (whole.accumulation, whole.micro_batch, whole.fits) == (1, 8, None)
    assert whole.memory is not None
    assert whole.needed is not None
    assert whole.needed == whole.memory.peak + whole.memory.gradients  # the best state is a copy of what trains
    cut = estimate.estimate_memory(wanted, limit=whole.needed - 1, devices=1, examples=None, length=64)
    assert (cut.accumulation, cut.micro_batch, cut.examples, cut.fits) == (2, 4, 8, True)
    assert cut.needed is not None
    assert cut.needed < whole.needed
    never = estimate.estimate_memory(wanted, limit=1_000_000, devices=1, examples=2, length=64)
    assert (never.accumulation, never.micro_batch, never.fits) == (2, 1, False)


@pytest.mark.slow
def test_what_no_cut_makes_fit_is_found_with_two_examples(
    bases: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = recipe(bases["encoder"], "encoder", LORA, batch_examples=6)
    seen: list[tuple[int, int]] = []

    def counted(cut: Recipe, shape: Shape, batch: Batch, *, sharers: int) -> Memory:
        seen.append((len(batch.share), cut.training.accumulation))
        return predict(cut, shape, batch, sharers=sharers)

    predict = estimate.predict
    monkeypatch.setattr(estimate, "predict", counted)
    never = estimate.estimate_memory(wanted, limit=1024, devices=1, examples=None, length=16)
    assert seen == [(6, 1), (2, 2)]
    assert (never.accumulation, never.micro_batch, never.fits) == (6, 1, False)
    single = recipe(bases["encoder"], "encoder", LORA, batch_examples=6, accumulation=6)
    whole = estimate.estimate_memory(single, limit=None, devices=1, examples=None, length=16)
    assert whole.memory is not None
    assert whole.needed is not None
    assert never.needed is not None
    assert 0 <= whole.needed - never.needed < whole.memory.inputs


@pytest.mark.slow
def test_devices_share_a_step(bases: dict[str, Path]) -> None:
    wanted = recipe(bases["encoder"], "encoder", LORA, batch_examples=4)
    alone = estimate.estimate_memory(wanted, limit=None, devices=1, examples=2, length=32)
    shared = estimate.estimate_memory(wanted, limit=None, devices=2, examples=4, length=32)
    assert alone.memory is not None
    assert alone.needed is not None
    assert shared.memory == alone.memory
    assert shared.needed == alone.needed + alone.memory.gradients  # exchanged in buckets of their own


SHARED: list[tuple[str, Any, Any]] = [
    ("encoder", "full", "none"),
    ("encoder", LORA, {"kind": "nf4", "storage": "bfloat16"}),
    ("decoder", LORA, "none"),
    ("encoder-decoder", ADAPTER, "none"),
]


@pytest.mark.parametrize(("shape", "method", "quantization"), slow_after(1, SHARED))
def test_the_plan_of_shares_is_within_five_percent_of_what_a_process_holds(
    bases: dict[str, Path], shape: str, method: Any, quantization: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other process is not there, so what it should send is whatever lies in memory, and no number means a thing.

    Over gloo a thread that the recorder cannot see lets go of what was sent.
    """
    monkeypatch.setattr(math, "isfinite", lambda number: True)
    wanted = recipe(bases[shape], shape, method, quantization)
    known = wanted.model.shape()
    batch = estimate.sample_batch(wanted, known, examples=EXAMPLES, length=LENGTH)
    planned = estimate.predict(wanted, known, batch, sharers=2)
    with fake_process_group(2) as mesh:
        real = measured(wanted, bases[shape], batch, mesh=mesh)
    check_bytes(planned, real)
    whole = estimate.predict(wanted, known, batch)
    assert 2 * (planned.base + planned.method + planned.head) == pytest.approx(
        whole.weights - whole.constants, rel=0.01
    )
    assert planned.constants == whole.constants  # each process has all of them


def test_every_quantisation_has_a_forecast_or_a_reason(bases: dict[str, Path]) -> None:
    full = recipe(bases["encoder"], "encoder", "full")
    found = {f.quantization: f for f in estimate.estimate(full, examples=1, length=16)}
    assert list(found) == ["none", "fp4", "int8", "nf4"]
    assert found["none"].memory is not None
    assert "full fine-tuning" in str(found["nf4"].unsupported)


@pytest.mark.slow
def test_a_base_that_is_not_here_is_planned_by_its_kept_shape(tmp_path: Path) -> None:
    """Seven thousand million weights, none of them made."""
    wanted = recipe(Path("meta-llama/Llama-3.1-8B"), "decoder", LORA, "nf4", precision="bfloat16")
    forecast = estimate.estimate_memory(wanted, limit=24 * 2**30, devices=1, examples=1, length=64)
    assert forecast.memory is not None
    # 6.98e9 weights in linear layers at half a byte, 1.05e9 in embeddings and output layer at two.
    assert forecast.memory.base == pytest.approx(0.5 * 6.98e9 + 2 * 1.05e9, rel=0.01)
    assert forecast.memory.constants == pytest.approx(6.98e9 / 64 * (1 + 4 / 256), rel=0.01)
    assert forecast.fits


@pytest.mark.parametrize("text", ["24", "GiB", "0 GiB", "24 GiX", "-1 GiB", "nan GiB", "1e3 GiB"])
def test_a_size_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(UserError, match="24 GiB"):
        estimate.parse_size(text)


@pytest.mark.slow
def test_a_quantisation_is_planned_in_shares_as_they_can_be_cut(bases: dict[str, Path]) -> None:
    wanted = recipe(bases["encoder"], "encoder", LORA)
    found = {f.quantization: f for f in estimate.estimate(wanted, devices=2, sharded=True, examples=2, length=16)}
    assert found["nf4"].memory is not None
    assert found["none"].memory is not None
    assert found["nf4"].memory.base < found["none"].memory.base
    assert "cannot be cut" in str(found["int8"].unsupported)
    with pytest.raises(UserError, match="--devices 2"):
        next(estimate.estimate(wanted, sharded=True))
