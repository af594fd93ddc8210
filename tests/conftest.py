"""Fixtures of all tests: the real MiniLM, real addresses, and a recipe that trains on them in seconds."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # a test that needs the Hub says so

import pytest
import torch

from peftlab.data.examples import Encoded, Splits
from peftlab.loading.model import Base, LoadOptions, load_base, load_tokenizer
from peftlab.methods import Method, TrainingPlan
from peftlab.methods.lora import Lora
from peftlab.models.model import Model, ModelFiles
from peftlab.quantization import QUANTIZATIONS
from peftlab.recipe import load_recipe
from peftlab.results.environment import quiet_libraries
from peftlab.tasks import Task
from peftlab.tasks.token_classification import TokenClassification
from tests.commands import Server, serving

quiet_libraries()

MINILM = Model(id="sentence-transformers/all-MiniLM-L6-v2")
RECIPE = """\
model: sentence-transformers/all-MiniLM-L6-v2
task: token_classification
data:
  id: datamade/usaddress
  columns: {labels: ner_tags}
  train_examples: 48
  validation_examples: 12
  test_examples: 12
method: {kind: lora, rank: 4, targets: attention}
training: {steps: 6, evaluate_every: 3, batch_tokens: 256, learning_rate: 5e-3, precision: float32}
"""


@pytest.fixture(scope="session")
def minilm() -> ModelFiles:
    return MINILM.files()


@pytest.fixture(scope="session")
def addresses(tmp_path_factory: pytest.TempPathFactory) -> Splits:
    path = tmp_path_factory.mktemp("recipe") / "mine.yaml"
    path.write_text(RECIPE)
    return load_recipe(path).data.load(("tokens", "labels"))


@pytest.fixture(scope="session")
def tagging(addresses: Splits) -> Task:
    return TokenClassification().bind(row for rows in addresses.rows.values() for row in rows)


@pytest.fixture(scope="session")
def encoded(addresses: Splits, tagging: Task, minilm: ModelFiles) -> Encoded:
    return tagging.encode(addresses.rows["train"], load_tokenizer(minilm, tagging), 128)


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serving(tmp_path_factory.mktemp("commands")) as server:
        yield server


@pytest.fixture
def recipe_file(tmp_path: Path) -> Path:
    path = tmp_path / "mine.yaml"
    path.write_text(RECIPE)
    return path


@pytest.fixture
def base_of(minilm: ModelFiles, tagging: Task) -> Callable[..., Base]:
    """Loader of MiniLM with a head for the addresses' tags, e.g. `base_of("nf4", seed=1)`."""

    def load(quantization: str = "none", **settings: object) -> Base:
        defaults = {"device": torch.device("cpu"), "compute": torch.float32, **settings}
        return load_base(MINILM, minilm, tagging, QUANTIZATIONS[quantization](), LoadOptions(**defaults))  # type: ignore[arg-type]

    return load


@pytest.fixture
def attach() -> Callable[..., torch.nn.Module]:
    """Applies a method to a base from a fixed seed, e.g. `attach(base, Lora(rank=2))`."""

    def apply(base: Base, method: Method | None = None, seed: int = 0) -> torch.nn.Module:
        torch.manual_seed(seed)
        return (method or Lora(rank=4)).apply(
            base.model,
            TrainingPlan(optimizer_steps=10, task_type="TOKEN_CLS", head=base.head, longest_input=64, seed=seed),
        )

    return apply


@pytest.fixture
def probe_input() -> dict[str, torch.Tensor]:
    ids = torch.randint(1000, 20000, (2, 16), generator=torch.Generator().manual_seed(0))
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
