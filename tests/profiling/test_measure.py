"""Profiles: bytes that repeat, FLOPs that add up, and a golden table of four ways to train."""

import dataclasses
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from accelerate import Accelerator
from torch import Tensor
from transformers import BertConfig, BertForSequenceClassification

from peftlab.data.examples import Example, Row
from peftlab.errors import UserError
from peftlab.loading.model import Base
from peftlab.methods import METHODS
from peftlab.models.byte_tokenizer import byte_tokenizer
from peftlab.models.model import ModelFiles
from peftlab.profiling.measure import flops_pass, inference_pass, measured, memory_pass
from peftlab.profiling.memory import HostRecorder, recorder
from peftlab.profiling.profile import MIB, Flops
from peftlab.profiling.profiled_workload import ProfiledWorkload, attach, batch_shape
from peftlab.profiling.snapshots import PhaseSnapshot, read_step
from peftlab.recipe import Recipe
from peftlab.tasks.sequence_classification import SequenceClassification
from peftlab.training.settings import Training
from tests.sampling import slow_after

VOCABULARY, EXAMPLES, LENGTH = 8000, 8, 128


class Labeled(SequenceClassification):
    """Two classes over token ids without a mask: the batch of the golden table."""

    kind: Literal["sequence_classification"] = "sequence_classification"

    def collate(self, examples: Sequence[Example], padding_token: int) -> dict[str, Tensor]:
        return {
            "input_ids": torch.tensor([example.features["input_ids"] for example in examples]),
            "labels": torch.tensor([example.features["label"] for example in examples]),
        }

    def loss(self, outputs: Any, batch: dict[str, Tensor]) -> Tensor:
        return torch.nn.functional.cross_entropy(outputs.logits.float(), batch["labels"], reduction="sum")

    @property
    def selection(self) -> str:
        return "accuracy"


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Attention on a CPU allocates one buffer per thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def golden_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=VOCABULARY,
        hidden_size=512,
        num_hidden_layers=4,
        num_attention_heads=8,
        intermediate_size=2048,
        num_labels=2,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        attn_implementation="sdpa",
    )
    folder = tmp_path_factory.mktemp("golden")
    BertForSequenceClassification(config).save_pretrained(folder)
    return folder


Golden = Callable[..., ProfiledWorkload]


@pytest.fixture
def golden(golden_base: Path) -> Golden:
    """`golden("lora", "int8", prepared=False)`: the workload of the golden table."""

    def make(method: str, quantization: str = "none", *, prepared: bool = True, **training: object) -> ProfiledWorkload:
        lora = {"kind": "lora", "rank": 8, "alpha": 16.0, "targets": ["query", "value"]}
        recipe = Recipe.model_validate(
            {
                **{"name": "golden", "model": "golden", "data": "none", "task": "token_classification"},
                **{"method": lora if method == "lora" else method, "quantization": quantization},
                "training": {"precision": "float32", "attention": "sdpa", **training},
            }
        )
        config = recipe.quantization.config(["classifier", "bert.pooler"], torch.float32)  # the encoder's linears alone
        placed = {} if config is None else {"quantization_config": config, "device_map": {"": torch.device("cpu")}}
        model = BertForSequenceClassification.from_pretrained(golden_base, dtype=torch.float32, **placed)
        model.requires_grad_(False)
        if prepared:
            recipe.quantization.prepare(model)
        generator = torch.Generator().manual_seed(0)
        ids = torch.randint(VOCABULARY, (EXAMPLES, LENGTH), generator=generator).tolist()
        return attach(
            recipe,
            Base(model, ("classifier",), 0, ModelFiles(folder=golden_base, source="golden", fingerprint="")),
            [Example({"input_ids": row, "label": i % 2}, Row("", {})) for i, row in enumerate(ids)],
            task=Labeled(),
            tokenizer=byte_tokenizer(model.config),
            accelerator=Accelerator(),
            precision="float32",
        )

    return make


# In MiB, from the golden table of the protocol: weights and constants, optimizer, gradients, retained, end of
# forward, peak without what persists from step to step. Then in bytes: the first five, constants, transient.
GOLDEN = {
    ("full", "none", True): (
        (65.75, 131.48, 65.74, 0, 132.21, 340.44),
        (68941832, 137867572, 68933640, 0, 138634320, 0, 11521988),
    ),
    ("lora", "none", True): (
        (66.00, 0.51, 0.254, 0, 88.45, 170.95),
        (69208080, 532568, 266248, 0, 92749968, 0, 16756676),
    ),
    ("lora", "nf4", True): (
        (24.22, 0.51, 0.254, 0, 88.45, 129.17),
        (25393776, 532568, 266248, 0, 92749968, 225888, 16756676),
    ),
    # Plain bitsandbytes keeps the input of every linear layer until the graph is freed.
    ("lora", "int8", False): (
        (30.07, 0.51, 0.254, 54.0, 128.45, 175.03),
        (31533072, 532568, 266248, 56623108, 134693008, 73728, 16756676),
    ),
    # As peftlab trains it: a hook releases the inputs, so that it takes no more than NF4.
    ("lora", "int8", True): (
        (30.07, 0.51, 0.254, 0, 88.45, 135.02),
        (31533072, 532568, 266248, 0, 92749968, 73728, 16756676),
    ),
}


@pytest.mark.parametrize(("method", "quantization", "prepared"), slow_after(1, GOLDEN))
def test_bytes_equal_the_golden_table(golden: Golden, method: str, quantization: str, prepared: bool) -> None:
    table, exact = GOLDEN[method, quantization, prepared]
    memory = memory_pass(golden(method, quantization, prepared=prepared), HostRecorder(), evaluate=False)
    parts = (memory.weights, memory.optimizer, memory.gradients, memory.retained, memory.activations)
    assert [size / MIB for size in [*parts, memory.peak - memory.persistent]] == pytest.approx(table, abs=0.01)
    assert memory.persistent < 128 * 1024
    assert (*parts, memory.constants, memory.transient) == exact


def small(profiled: ProfiledWorkload, examples: int = 2, length: int = 32) -> ProfiledWorkload:
    """The same workload on a smaller batch."""
    workload = profiled.workload
    cut = [Example({**e.features, "input_ids": e.features["input_ids"][:length]}, e.row) for e in workload.examples]
    return dataclasses.replace(profiled, workload=dataclasses.replace(workload, examples=cut[:examples]))


@pytest.mark.slow
def test_every_run_measures_the_same_bytes(golden: Golden) -> None:
    first, again = (memory_pass(small(golden("lora", "nf4")), HostRecorder()) for _ in range(2))
    assert again.model_copy(update={"process_peak": first.process_peak}) == first


def test_the_parts_add_up_to_the_peak(golden: Golden) -> None:
    memory = memory_pass(small(golden("lora")), HostRecorder())
    parts = (
        memory.weights + memory.optimizer + memory.persistent + memory.inputs + memory.activations + memory.transient
    )
    assert parts == memory.peak == sum(memory.at_peak.values())
    assert memory.at_peak["activations or gradients"] == memory.activations
    assert memory.best_state == memory.gradients
    assert memory.evaluation_peak is not None
    assert memory.weights < memory.evaluation_peak < memory.peak
    assert memory.process_peak is not None
    assert memory.process_peak > memory.peak


@pytest.mark.slow
def test_micro_batches_need_fewer_activations(golden: Golden) -> None:
    full = memory_pass(small(golden("lora"), 4), HostRecorder(), evaluate=False)
    cut = memory_pass(small(golden("lora", accumulation=4), 4), HostRecorder(), evaluate=False)
    assert cut.activations == pytest.approx(full.activations / 4, rel=0.01)
    assert (cut.gradients, cut.retained, cut.optimizer) == (full.gradients, full.retained, full.optimizer)


def test_what_a_layer_stores_from_step_to_step_is_persistent(golden: Golden) -> None:
    profiled, stored = small(golden("lora")), []
    layer = profiled.workload.model.get_submodule("base_model.model.bert.encoder.layer.0")
    layer.register_forward_hook(lambda module, inputs, output: stored.__setitem__(slice(None), [output + 0]))
    memory = memory_pass(profiled, HostRecorder(), evaluate=False)
    assert memory.retained == 0  # as much was released of the previous step
    assert memory.persistent > 2 * 32 * 512 * 4
    stored.clear()


def ratio(flops: Flops) -> float:
    return round((flops.forward + flops.backward) / flops.forward, 2)


@pytest.mark.slow
def test_the_flops_of_a_step_in_forward_passes(golden: Golden) -> None:
    """Three for full fine-tuning, about two for LoRA in every layer, little more than one for the head alone."""
    flops = {method: flops_pass(golden(method)) for method in ("full", "lora", "head")}
    # 24 d^2 FLOPs per layer and token, d = 512, and 4 L d of attention.
    assert flops["full"].forward == pytest.approx(4 * (24 * 512**2 + 4 * 128 * 512), rel=0.01)
    assert ratio(flops["full"]) == pytest.approx(3, abs=0.05)
    assert ratio(flops["lora"]) == pytest.approx(2, abs=0.02)
    # Of the linear layers alone, as torch counts on a CPU: backward stops at the first layer's query and value.
    attention = 4 * 4 * 128 * 512
    linears = (flops["lora"].backward - 2.5 * attention) / (flops["lora"].forward - attention)
    assert 1 + linears == pytest.approx(1.94, abs=0.01)
    assert ratio(flops["head"]) == pytest.approx(1, abs=0.01)


@pytest.mark.parametrize("quantization", ["nf4", "int8"])
def test_quantized_layers_are_counted(golden: Golden, quantization: str) -> None:
    plain, quantized = flops_pass(small(golden("lora"))), flops_pass(small(golden("lora", quantization)))
    assert quantized == plain


def test_gradient_checkpointing_adds_a_forward_pass(golden: Golden) -> None:
    plain = flops_pass(small(golden("lora")))
    checkpointed = flops_pass(small(golden("lora", gradient_checkpointing=True)))
    assert checkpointed.forward == plain.forward
    assert checkpointed.backward - plain.backward == pytest.approx(plain.forward, rel=0.03)


@pytest.mark.parametrize("name", ["int8_scaled_mm", "int8_linear_matmul"])
def test_operators_of_a_gpu_are_counted(name: str) -> None:
    """int8 training on a GPU uses operators that a CPU uses only in evaluation."""
    from peftlab.profiling.flops import formulas

    count = formulas()[getattr(torch.ops.bitsandbytes, name)]
    assert count((4, 16, 64), (32, 64), out_shape=(4, 16, 32)) == 2 * 4 * 16 * 64 * 32


def test_a_profile_is_a_record_that_is_read_without_torch(golden: Golden, tmp_path: Path) -> None:
    profile = measured(small(golden("lora")))
    assert profile.times is not None
    assert profile.inference is not None
    assert profile.times.steps == 10
    assert profile.times.processor_fraction is not None
    assert 0 < profile.times.processor_fraction <= 1
    assert profile.times.quartiles[0] <= profile.times.median <= profile.times.quartiles[1]
    assert profile.times.tokens_per_second == pytest.approx(64 / profile.times.median)
    assert profile.inference.merge_error is not None
    assert profile.inference.merge_error < 1e-4
    assert profile.inference.base is not None
    path = tmp_path / "profile.json"
    path.write_text(profile.model_dump_json())
    code = (
        "import sys; from pathlib import Path; from peftlab.profiling.profile import Profile; "
        "from peftlab.profiling.summary import profile_lines; "
        f"print(profile_lines(Profile.model_validate_json(Path({str(path)!r}).read_text()))[-1]); "
        "assert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "merging" in done.stdout


@pytest.mark.parametrize("method", slow_after(4, sorted(METHODS.keys() - {"peft"})))
def test_every_method_can_be_profiled(golden: Golden, method: str) -> None:
    profiled = small(golden(method))
    profile = measured(profiled, timed=False)
    trainable = [p for p in profiled.workload.model.parameters() if p.requires_grad]
    assert profile.memory.gradients == sum(p.numel() * p.element_size() for p in trainable)
    assert profile.memory.optimizer >= 2 * profile.memory.gradients
    assert profile.flops.forward > 0


@pytest.mark.slow
def test_times_are_null_for_what_cannot_be_disabled_or_merged(golden: Golden) -> None:
    inference = inference_pass(small(golden("lora", "nf4")))
    assert inference.merged is None
    assert inference.merge_error is None
    assert inference.base is not None
    assert inference_pass(small(golden("head"))).base is None


def test_a_batch_longer_than_the_base_model_allows_is_refused() -> None:
    with pytest.raises(UserError, match="--length 513"):
        batch_shape(Training(), 512, examples=None, length=513)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_recorder_sees_the_gradients() -> None:
    device = torch.device("cuda")
    weight = torch.nn.Parameter(torch.zeros(1024, 1024, device=device))
    recording = recorder(device)
    with recording:
        for _ in range(2):
            recording.mark("inputs")
            loss = (weight * 2).sum()
            recording.mark("forward")
            loss.backward()  # type: ignore[no-untyped-call]
            recording.mark("backward")
            weight.grad = None
            del loss
            recording.mark("optimizer")
    step = read_step(recording.snapshots())
    assert step.after_backward == pytest.approx(weight.numel() * 4, abs=1024)
    assert step.rest == 0
    assert recording.reserved is not None
    assert recording.reserved >= step.peak


def test_marks_without_two_steps_are_refused() -> None:
    with pytest.raises(ValueError, match="1 were recorded"):
        read_step([PhaseSnapshot("inputs", 1, 1), PhaseSnapshot("optimizer", 1, 1)])
