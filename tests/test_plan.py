"""The planner against the ledger: what a step without values would take, and what a real one takes."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

import pytest
import torch
import transformers
from accelerate import Accelerator
from torch import Tensor

from peftlab import plan
from peftlab.base import load_base
from peftlab.examples import Encoded, Example, Row
from peftlab.ledger import Memory
from peftlab.measure import memory_pass, subject
from peftlab.memory import HostRecorder
from peftlab.model import Files
from peftlab.part import BadInput
from peftlab.recipe import Recipe
from peftlab.tasks import Task
from peftlab.tasks.task import IGNORED, pad

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


class Continue(Task):
    """The next token after each, for a decoder."""

    kind: Literal["continue"] = "continue"
    auto_class: ClassVar[str] = "AutoModelForCausalLM"
    task_type: ClassVar[str] = "CAUSAL_LM"
    fields: ClassVar[tuple[str, ...]] = ("text",)
    selection: ClassVar[str] = "none"
    metrics: ClassVar[tuple[str, ...]] = ()
    new_head: ClassVar[bool] = False

    def fitted(self, rows: Any) -> "Continue":
        return self

    def model_settings(self) -> dict[str, Any]:
        return {}

    def sample(self) -> list[Row]:
        return [Row("sample:1", {"text": "Ada met Max in Ulm."})]

    def encode(self, rows: Sequence[Row], tokenizer: Any, limit: int) -> Encoded:
        found = [tokenizer(row.fields["text"])["input_ids"][:limit] for row in rows]
        return Encoded([Example({"input_ids": ids, "labels": ids}, row) for ids, row in zip(found, rows, strict=True)], {})

    def collate(self, examples: Sequence[Example], padding_token: int) -> dict[str, Tensor]:
        return {
            "input_ids": pad([example.features["input_ids"] for example in examples], padding_token),
            "attention_mask": pad([[1] * len(example) for example in examples], 0),
            "labels": pad([example.features["labels"] for example in examples], IGNORED),
        }

    def loss(self, outputs: Any, batch: dict[str, Tensor]) -> Tensor:
        logits = outputs.logits[:, :-1].float().flatten(0, 1)
        labels = batch["labels"][:, 1:].flatten()
        return torch.nn.functional.cross_entropy(logits, labels, ignore_index=IGNORED, reduction="sum")

    def decode(self, outputs: Any, examples: Sequence[Example]) -> list[dict[str, Any]]:
        return [{} for _ in examples]


class Rewrite(Continue):
    """The input once more, for an encoder-decoder."""

    kind: Literal["rewrite"] = "rewrite"  # type: ignore[assignment]
    auto_class: ClassVar[str] = "AutoModelForSeq2SeqLM"
    task_type: ClassVar[str] = "SEQ_2_SEQ_LM"

    def collate(self, examples: Sequence[Example], padding_token: int) -> dict[str, Tensor]:
        batch = super().collate(examples, padding_token)
        return {**batch, "decoder_input_ids": batch["input_ids"].clone()}


TASKS: dict[str, Task] = {"decoder": Continue(), "encoder-decoder": Rewrite()}


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def recipe(folder: Path, shape: str, method: Any, quantization: str = "none", **training: object) -> Recipe:
    made = Recipe.model_validate(
        {
            **{"name": "planned", "model": str(folder), "data": "none", "task": "token_classification"},
            **{"method": method, "quantization": quantization},
            "training": {"precision": "float32", "batch_examples": EXAMPLES, **training},
        }
    )
    return made.model_copy(update={"task": TASKS.get(shape, made.task)})


@pytest.fixture(scope="session")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A base with random weights of each shape."""
    found = {}
    for name, shape in SHAPES.items():
        found[name] = tmp_path_factory.mktemp(name)
        values = dict(shape)
        config = transformers.AutoConfig.for_model(values.pop("model_type"), **values, num_labels=3)
        task = TASKS.get(name)
        auto = getattr(transformers, task.auto_class if task else "AutoModelForTokenClassification")
        auto.from_config(config).save_pretrained(found[name])
    return found


def measured(wanted: Recipe, folder: Path) -> Memory:
    """The ledger's bytes on the batch that the planner takes."""
    task = wanted.task.fitted(wanted.task.sample())
    base = load_base(
        wanted.model,
        Files(folder, "random", ""),
        task,
        wanted.quantization,
        device=torch.device("cpu"),
        compute=torch.float32,
        frozen=not wanted.method.trains_base,
    )
    features = {"input_ids": [i % 100 for i in range(LENGTH)], "labels": [i % 2 for i in range(LENGTH)]}
    ready = subject(
        wanted,
        task,
        base,
        [Example(features, Row("", {}))] * EXAMPLES,
        tokenize=lambda text: [1, 2, 3],
        padding_token=0,
        accelerator=Accelerator(),
        precision="float32",
    )
    return memory_pass(ready, HostRecorder(), evaluate=False)


LORA, ADAPTER = {"kind": "lora", "rank": 8}, {"kind": "adapter", "bottleneck": 16}
CASES = [
    (shape, method, quantization, checkpointing)
    for shape in SHAPES
    for method, quantization in [("full", "none"), *[(m, q) for m in (LORA, ADAPTER) for q in ("none", "int8", "nf4")]]
    for checkpointing in (False, True)
]


@pytest.mark.parametrize(("shape", "method", "quantization", "checkpointing"), CASES)
def test_the_plan_is_within_five_percent_of_the_ledger(
    bases: dict[str, Path], shape: str, method: Any, quantization: str, checkpointing: bool
) -> None:
    wanted = recipe(bases[shape], shape, method, quantization, gradient_checkpointing=checkpointing)
    _, _, planned = plan.predict(wanted, devices=1, examples=EXAMPLES, length=LENGTH)
    real = measured(wanted, bases[shape])
    print("CASE", shape, method, quantization, checkpointing); print("PLAN", planned); print("REAL", real)
    for name in ("base", "constants", "method", "head", "optimizer", "gradients"):
        assert getattr(planned, name) == getattr(real, name), name
    assert planned.activations == pytest.approx(real.activations, rel=0.05)
    assert planned.peak == pytest.approx(real.peak, rel=0.05)
