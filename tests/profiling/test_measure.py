"""The ledger: bytes that repeat, operations that add up, and what the golden table says of four ways to train."""

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
from peftlab.models.model import ModelFiles
from peftlab.models.tiny_model import byte_tokenizer
from peftlab.profiling.measure import Subject, batch_shape, flops_pass, inference_pass, measured, memory_pass, subject
from peftlab.profiling.memory import HostRecorder, recorder
from peftlab.profiling.profile import MIB, Flops, PhaseSnapshot, read_step
from peftlab.recipe import Recipe
from peftlab.tasks.sequence_classification import SequenceClassification
from peftlab.training.settings import Training
from tests.sampling import slow_after

VOCABULARY, EXAMPLES, LENGTH = 8000, 8, 128


class Labeled(SequenceClassification):
    """Two classes over token ids that need no mask: the batch of the golden table."""

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
    """The CPU's attention takes a buffer for each thread."""
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


Golden = Callable[..., Subject]


@pytest.fixture
def golden(golden_base: Path) -> Golden:
    """`golden("lora", "int8", cured=False)`: the golden table's model, ready to train."""

    def make(method: str, quantization: str = "none", *, cured: bool = True, **training: object) -> Subject:
        lora = {"kind": "lora", "rank": 8, "alpha": 16.0, "targets": ["query", "value"]}
        recipe = Recipe.model_validate(
            {
                **{"name": "golden", "model": "golden", "data": "none", "task": "token_classification"},
                **{"method": lora if method == "lora" else method, "quantization": quantization},
                "training": {"precision": "float32", **training},
            }
        )
        config = recipe.quantization.config(["classifier", "bert.pooler"], torch.float32)  # the encoder's linears alone
        placed = {} if config is None else {"quantization_config": config, "device_map": {"": torch.device("cpu")}}
        model = BertForSequenceClassification.from_pretrained(golden_base, dtype=torch.float32, **placed)
        model.requires_grad_(False)
        if cured:
            recipe.quantization.prepare(model)
        generator = torch.Generator().manual_seed(0)
        ids = torch.randint(VOCABULARY, (EXAMPLES, LENGTH), generator=generator).tolist()
        return subject(
            recipe,
            Base(model, ("classifier",), 0, ModelFiles(folder=golden_base, source="golden", fingerprint="")),
            [Example({"input_ids": row, "label": i % 2}, Row("", {})) for i, row in enumerate(ids)],
            task=Labeled(),
            tokenizer=byte_tokenizer(model.config),
            accelerator=Accelerator(),
            precision="float32",
        )

    return make


# In MiB, as the golden table of the protocol has them: weights and constants, optimiser, gradients, held, end of
# forward, peak without the odds and ends that the loop keeps. Then in bytes: the first five, constants, transient.
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
    # Bare bitsandbytes keeps the input of every linear layer until the graph goes.
    ("lora", "int8", False): (
        (30.07, 0.51, 0.254, 54.0, 128.45, 175.03),
        (31533072, 532568, 266248, 56623108, 134693008, 73728, 16756676),
    ),
    # As peftlab trains it: its hook lets go of the inputs, and what is left takes no more than NF4's.
    ("lora", "int8", True): (
        (30.07, 0.51, 0.254, 0, 88.45, 135.02),
        (31533072, 532568, 266248, 0, 92749968, 73728, 16756676),
    ),
}


@pytest.mark.parametrize(("method", "quantization", "cured"), slow_after(1, GOLDEN))
def test_the_golden_bytes(golden: Golden, method: str, quantization: str, cured: bool) -> None:
    table, exact = GOLDEN[method, quantization, cured]
    memory = memory_pass(golden(method, quantization, cured=cured), HostRecorder(), evaluate=False)
    found = (memory.weights, memory.optimizer, memory.gradients, memory.held, memory.activations)
    assert [size / MIB for size in [*found, memory.peak - memory.kept]] == pytest.approx(table, abs=0.01)
    assert memory.kept < 128 * 1024
    assert (*found, memory.constants, memory.transient) == exact


def small(subject: Subject, examples: int = 2, length: int = 32) -> Subject:
    """The same on a smaller batch."""
    workload = subject.workload
    cut = [Example({**e.features, "input_ids": e.features["input_ids"][:length]}, e.row) for e in workload.examples]
    return dataclasses.replace(subject, workload=dataclasses.replace(workload, examples=cut[:examples]))


@pytest.mark.slow
def test_the_bytes_repeat(golden: Golden) -> None:
    first, again = (memory_pass(small(golden("lora", "nf4")), HostRecorder()) for _ in range(2))
    assert again.model_copy(update={"process_peak": first.process_peak}) == first


def test_the_parts_come_to_the_peak(golden: Golden) -> None:
    memory = memory_pass(small(golden("lora")), HostRecorder())
    parts = memory.weights + memory.optimizer + memory.kept + memory.inputs + memory.activations + memory.transient
    assert parts == memory.peak == sum(memory.at_peak.values())
    assert memory.at_peak["activations or gradients"] == memory.activations
    assert memory.best_state == memory.gradients
    assert memory.evaluation_peak is not None
    assert memory.weights < memory.evaluation_peak < memory.peak
    assert memory.process_peak is not None
    assert memory.process_peak > memory.peak


@pytest.mark.slow
def test_micro_batches_hold_fewer_activations(golden: Golden) -> None:
    whole = memory_pass(small(golden("lora"), 4), HostRecorder(), evaluate=False)
    cut = memory_pass(small(golden("lora", accumulation=4), 4), HostRecorder(), evaluate=False)
    assert cut.activations == pytest.approx(whole.activations / 4, rel=0.01)
    assert (cut.gradients, cut.held, cut.optimizer) == (whole.gradients, whole.held, whole.optimizer)


def test_what_a_layer_keeps_after_the_backward_pass_is_held(golden: Golden) -> None:
    subject, kept = small(golden("lora")), []
    layer = subject.workload.model.get_submodule("base_model.model.bert.encoder.layer.0")
    layer.register_forward_hook(lambda module, inputs, output: kept.__setitem__(slice(None), [output + 0]))
    memory = memory_pass(subject, HostRecorder(), evaluate=False)
    assert memory.held == 0  # of the step before, as much was given back
    assert memory.kept > 2 * 32 * 512 * 4
    kept.clear()


def ratio(flops: Flops) -> float:
    return round((flops.forward + flops.backward) / flops.forward, 2)


@pytest.mark.slow
def test_operations_of_a_step_in_forward_passes(golden: Golden) -> None:
    """Full fine-tuning three; LoRA in every layer about two; the head alone little more than one."""
    found = {method: flops_pass(golden(method)) for method in ("full", "lora", "head")}
    # 2 (24 d^2) multiply-adds a layer and token, d = 512, and the attention's 4 L d.
    assert found["full"].forward == pytest.approx(4 * (24 * 512**2 + 4 * 128 * 512), rel=0.01)
    assert ratio(found["full"]) == pytest.approx(3, abs=0.05)
    assert ratio(found["lora"]) == pytest.approx(2, abs=0.02)
    # Of the linear layers alone, as torch counts on a CPU: nothing goes back below the first layer's query and value.
    attention = 4 * 4 * 128 * 512
    linears = (found["lora"].backward - 2.5 * attention) / (found["lora"].forward - attention)
    assert 1 + linears == pytest.approx(1.94, abs=0.01)
    assert ratio(found["head"]) == pytest.approx(1, abs=0.01)


@pytest.mark.parametrize("quantization", ["nf4", "int8"])
def test_quantised_layers_are_counted(golden: Golden, quantization: str) -> None:
    plain, quantized = flops_pass(small(golden("lora"))), flops_pass(small(golden("lora", quantization)))
    assert quantized == plain


def test_checkpointing_adds_a_forward_pass(golden: Golden) -> None:
    plain = flops_pass(small(golden("lora")))
    again = flops_pass(small(golden("lora", gradient_checkpointing=True)))
    assert again.forward == plain.forward
    assert again.backward - plain.backward == pytest.approx(plain.forward, rel=0.03)


@pytest.mark.parametrize("name", ["int8_scaled_mm", "int8_linear_matmul"])
def test_the_operators_of_a_gpu_are_counted(name: str) -> None:
    """int8 training on a GPU goes through operators that a CPU uses only in evaluation."""
    from peftlab.profiling.flops import formulas

    count = formulas()[getattr(torch.ops.bitsandbytes, name)]
    assert count((4, 16, 64), (32, 64), out_shape=(4, 16, 32)) == 2 * 4 * 16 * 64 * 32


def test_the_whole_ledger_is_a_record_that_is_read_without_torch(golden: Golden, tmp_path: Path) -> None:
    ledger = measured(small(golden("lora")))
    assert ledger.times is not None
    assert ledger.inference is not None
    assert ledger.times.steps == 10
    assert ledger.times.processor_share is not None
    assert 0 < ledger.times.processor_share <= 1
    assert ledger.times.quartiles[0] <= ledger.times.median <= ledger.times.quartiles[1]
    assert ledger.times.tokens_per_second == pytest.approx(64 / ledger.times.median)
    assert ledger.inference.merge_error is not None
    assert ledger.inference.merge_error < 1e-4
    assert ledger.inference.base is not None
    path = tmp_path / "ledger.json"
    path.write_text(ledger.model_dump_json())
    code = (
        "import sys; from pathlib import Path; from peftlab.profiling.profile import Profile, lines; "
        f"print(lines(Profile.model_validate_json(Path({str(path)!r}).read_text()))[-1]); "
        "assert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "merging" in done.stdout


@pytest.mark.parametrize("method", slow_after(4, sorted(METHODS.keys() - {"peft"})))
def test_every_method_has_a_ledger(golden: Golden, method: str) -> None:
    subject = small(golden(method))
    ledger = measured(subject, timed=False)
    trainable = [p for p in subject.workload.model.parameters() if p.requires_grad]
    assert ledger.memory.gradients == sum(p.numel() * p.element_size() for p in trainable)
    assert ledger.memory.optimizer >= 2 * ledger.memory.gradients
    assert ledger.flops.forward > 0


@pytest.mark.slow
def test_a_method_that_cannot_be_taken_off_or_merged_says_nothing_of_it(golden: Golden) -> None:
    found = inference_pass(small(golden("lora", "nf4")))
    assert found.merged is None
    assert found.merge_error is None
    assert found.base is not None
    assert inference_pass(small(golden("head"))).base is None


def test_a_batch_longer_than_the_base_is_refused() -> None:
    with pytest.raises(UserError, match="--length 513"):
        batch_shape(Training(), 512, examples=None, length=513)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_tells_the_same_gradients() -> None:
    device = torch.device("cuda")
    weight = torch.nn.Parameter(torch.zeros(1024, 1024, device=device))
    follow = recorder(device)
    with follow:
        for _ in range(2):
            follow.mark("inputs")
            loss = (weight * 2).sum()
            follow.mark("forward")
            loss.backward()  # type: ignore[no-untyped-call]
            follow.mark("backward")
            weight.grad = None
            del loss
            follow.mark("optimizer")
    step = read_step(follow.marks())
    assert step.after_backward == pytest.approx(weight.numel() * 4, abs=1024)
    assert step.rest == 0
    assert follow.reserved is not None
    assert follow.reserved >= step.peak


def test_marks_without_two_steps_are_refused() -> None:
    with pytest.raises(ValueError, match="1 were recorded"):
        read_step([PhaseSnapshot("inputs", 1, 1), PhaseSnapshot("optimizer", 1, 1)])
