"""The ledger: bytes that repeat, operations that add up, and what the golden table says of four ways to train."""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

import pytest
import torch
from accelerate import Accelerator
from torch import Tensor
from transformers import BertConfig, BertForSequenceClassification

from peftlab.base import Base
from peftlab.examples import Example, Row
from peftlab.ledger import MIB, Mark, Memory, memory_of, read_step
from peftlab.measure import Subject, batch_shape, flops_pass, measured, memory_pass, subject
from peftlab.memory import HostRecorder, recorder
from peftlab.model import Files
from peftlab.quantization import QUANTIZATIONS
from peftlab.recipe import Recipe
from peftlab.settings import Training
from peftlab.tasks import Task

VOCABULARY, EXAMPLES, LENGTH = 8000, 8, 128


class Labelled(Task):
    """Two classes over token ids that need no mask: the batch of the golden table."""

    kind: Literal["labelled"] = "labelled"
    auto_class: ClassVar[str] = "AutoModelForSequenceClassification"
    task_type: ClassVar[str] = "SEQ_CLS"
    selection: ClassVar[str] = "accuracy"
    metrics: ClassVar[tuple[str, ...]] = ()

    def collate(self, examples: Sequence[Example], padding_token: int) -> dict[str, Tensor]:
        return {
            "input_ids": torch.tensor([example.features["input_ids"] for example in examples]),
            "labels": torch.tensor([example.features["label"] for example in examples]),
        }

    def loss(self, outputs: Any, batch: dict[str, Tensor]) -> Tensor:
        return torch.nn.functional.cross_entropy(outputs.logits.float(), batch["labels"], reduction="sum")

    def decode(self, outputs: Any, examples: Sequence[Example]) -> list[dict[str, Any]]:
        return [{"predicted": number} for number in outputs.logits.argmax(-1).tolist()]


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
            Labelled(),
            Base(model, ("classifier",), 0, Files(golden_base, "golden", "")),
            [Example({"input_ids": row, "label": i % 2}, Row("", {})) for i, row in enumerate(ids)],
            tokenize=lambda text: [],
            padding_token=0,
            accelerator=Accelerator(),
            precision="float32",
        )

    return make


# In MiB, as the golden table of docs and notes has them: weights and constants, optimiser, gradients, held, end of
# forward, peak without what the loop itself keeps. Then bytes, as this loop has them: constants, kept, peak.
GOLDEN = {
    ("full", "none", True): ((65.75, 131.48, 65.74, 0, 132.21, 340.44), (0, 73748, 357047716)),
    ("lora", "none", True): ((66.00, 0.51, 0.254, 0, 88.45, 170.95), (0, 17428, 179272976)),
    ("lora", "nf4", True): ((24.22, 0.51, 0.254, 0, 88.45, 129.17), (225888, 17428, 135458672)),
    # Bare bitsandbytes keeps the input of every linear layer until the graph goes.
    ("lora", "int8", False): ((30.07, 0.51, 0.254, 54.0, 128.45, 175.03), (73728, 17428, 183541008)),
    # As peftlab trains it: its hook lets go of the inputs, and what is left takes no more than NF4's.
    ("lora", "int8", True): ((30.07, 0.51, 0.254, 0, 88.45, 135.02), (73728, 17428, 141597968)),
}


@pytest.mark.parametrize(("method", "quantization", "cured"), GOLDEN)
def test_the_golden_bytes(golden: Golden, method: str, quantization: str, cured: bool) -> None:
    table, exact = GOLDEN[method, quantization, cured]
    memory = memory_pass(golden(method, quantization, cured=cured), HostRecorder(), evaluate=False)
    found = [memory.weights, memory.optimizer, memory.gradients, memory.held, memory.activations]
    assert [size / MIB for size in [*found, memory.peak - memory.kept]] == pytest.approx(table, abs=0.01)
    assert (memory.constants, memory.kept, memory.peak) == exact
