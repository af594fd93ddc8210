"""Three tiny base models with random weights at every precision, their inputs, and a process that reloads adapters."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import AutoConfig, PreTrainedModel

from peftlab.loading.model import LoadOptions, load_base
from peftlab.methods import METHODS, Method, TrainingPlan
from peftlab.methods.method import MethodContext, TrainedToken
from peftlab.models.model import Model, ModelFiles
from peftlab.quantization import QUANTIZATIONS
from peftlab.tasks.token_classification import TokenClassification

FAMILIES = {"encoder": "TOKEN_CLS", "decoder": "CAUSAL_LM", "encoder-decoder": "SEQ_2_SEQ_LM"}
PRECISIONS = ("none", "int8", "nf4")
# Formats whose layers are peftlab's own and look like float layers to every method.
PACKED = tuple(kind for kind in ("hqq", "torchao_int8") if QUANTIZATIONS[kind]().missing_library() is None)
STEPS = 6
WIDTH, LAYERS, VOCABULARY = 64, 2, 97
TASK = TokenClassification(labels=["O", "B-X", "I-X"])
CLASSES = {"decoder": "AutoModelForCausalLM", "encoder-decoder": "AutoModelForSeq2SeqLM"}
SIZES: dict[str, dict[str, Any]] = {
    "bert": {"max_position_embeddings": 64, "intermediate_size": 128},
    "llama": {"max_position_embeddings": 64, "intermediate_size": 128, "num_key_value_heads": 2},
    "t5": {
        "d_model": WIDTH,
        "d_kv": 16,
        "d_ff": 128,
        "num_layers": LAYERS,
        "num_heads": 4,
        "decoder_start_token_id": 0,
    },
}
ARCHITECTURES = dict(zip(FAMILIES, SIZES, strict=True))


def tiny(architecture: str, auto: str, **sizes: Any) -> PreTrainedModel:
    """A model of this architecture with two layers of width 64 and random weights, in evaluation mode."""
    torch.manual_seed(0)
    shape = {"hidden_size": WIDTH, "num_hidden_layers": LAYERS, "num_attention_heads": 4, "intermediate_size": 128}
    config = AutoConfig.for_model(architecture, **{"vocab_size": VOCABULARY, "pad_token_id": 0, **shape, **sizes})
    return getattr(transformers, auto).from_config(config).eval()


def make_bases(folder: Path) -> None:
    """Save one model of each family, all without dropout."""
    shape = {"hidden_size": WIDTH, "num_hidden_layers": LAYERS, "num_attention_heads": 4}
    no_dropout = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, "dropout_rate": 0.0}
    for family, architecture in ARCHITECTURES.items():
        torch.manual_seed(0)
        common = {"vocab_size": VOCABULARY, "pad_token_id": 0, **({} if architecture == "t5" else shape)}
        config = AutoConfig.for_model(architecture, **common, **no_dropout, **SIZES[architecture])
        auto = getattr(transformers, CLASSES.get(family, "AutoModel"))
        auto.from_config(config).save_pretrained(folder / family)


def load(folder: Path, family: str, precision: str) -> PreTrainedModel:
    """A new base with its head, frozen, as a run loads it."""
    quantization, cpu = QUANTIZATIONS[precision](), torch.device("cpu")
    if family == "encoder":
        files = ModelFiles(folder=folder / family, source="a test", fingerprint="")
        name = Model(id=str(folder / family))
        return load_base(name, files, TASK, quantization, LoadOptions(device=cpu, compute=torch.float32)).model.eval()
    config = quantization.config(["lm_head"], torch.float32)
    settings = {} if config is None else {"quantization_config": config, "device_map": {"": cpu}}
    model = getattr(transformers, CLASSES[family]).from_pretrained(folder / family, **settings)
    model.requires_grad_(False)
    quantization.prepare(model)
    return model.eval()


def plan(family: str) -> TrainingPlan:
    """The plan of the tests' training: `STEPS` optimizer steps on `inputs`."""
    token = int(inputs(family)["input_ids"][0, 0])
    return TrainingPlan(
        optimizer_steps=STEPS,
        task_type=FAMILIES[family],
        head=("classifier",) if family == "encoder" else (),
        longest_input=11,
        tokens=(TrainedToken(text="<new>", id=token, pieces=(token,)),),
        tokenize=lambda text: [3 + ord(letter) % 90 for letter in text],
    )


def inputs(family: str) -> dict[str, Tensor]:
    """A batch of three sequences of up to 11 tokens."""
    ids = torch.randint(3, VOCABULARY, (3, 11), generator=torch.Generator().manual_seed(1))
    mask = (torch.arange(11) < torch.tensor([[11], [8], [5]])).long()
    batch = {"input_ids": ids * mask, "attention_mask": mask}
    return {**batch, "decoder_input_ids": ids[:, :7]} if family == "encoder-decoder" else batch


def loss(outputs: Any, family: str) -> Tensor:
    """Mean cross-entropy in nats against fixed labels, padding ignored."""
    logits = outputs.logits
    shape = (3, 7 if family == "encoder-decoder" else 11)
    assert logits.shape[:2] == shape, f"logits {tuple(logits.shape)} for {shape} labels"
    labels = torch.randint(0, 3, shape, generator=torch.Generator().manual_seed(2))
    if family != "encoder-decoder":
        labels = labels.masked_fill(inputs(family)["attention_mask"] == 0, -100)
    return cross_entropy(logits.flatten(0, 1), labels.flatten())


def logits(model: nn.Module, family: str) -> Tensor:
    """Logits in evaluation mode; the mode of the model is restored."""
    training = model.training
    model.eval()
    with torch.no_grad():
        result: Tensor = model(**inputs(family)).logits
    model.train(training)
    return result


def make_method(kind: str, settings: dict[str, Any]) -> Method:
    return METHODS[kind].model_validate(settings)


@dataclass(frozen=True)
class Combination:
    """A cell of the contract grid: a method with settings, the precision of the base, and its family."""

    kind: str
    sample: int  # index into the method's test_settings
    precision: str
    family: str

    def __str__(self) -> str:
        return f"{self.kind}{self.sample or ''}-{self.precision}-{self.family}"

    @property
    def settings(self) -> dict[str, Any]:
        return {"kind": self.kind, **METHODS[self.kind].test_settings[self.sample]}

    @property
    def method(self) -> Method:
        return make_method(self.kind, self.settings)

    @property
    def reason(self) -> str | None:
        """Reason why the combination is refused, None if it is supported."""
        context = MethodContext(
            architecture=ARCHITECTURES[self.family], quantization=self.precision, task_type=FAMILIES[self.family]
        )
        return self.method.incompatible_with(context)


ALL = [
    Combination(kind, sample, precision, family)
    for kind, method in METHODS.items()
    for sample in range(len(method.test_settings))
    for precision in (*PRECISIONS, *PACKED)
    for family in FAMILIES
]
SUPPORTED = [combination for combination in ALL if combination.reason is None]
REFUSED = [combination for combination in ALL if combination.reason is not None]


def coordinates(combination: Combination) -> tuple[str, str, str]:
    """The axes of the grid: method with settings, quantization, family. One method will do over a packed format."""
    method = "any" if combination.precision in PACKED else f"{combination.kind}{combination.sample}"
    return method, combination.precision, combination.family


def require(kept: bool, subject: object, promise: str, *, found: object, expected: object) -> None:
    """Fail, unless `kept`, with the method or task, the broken promise, what was found and what was expected."""
    __tracebackhide__ = True
    if not kept:
        pytest.fail(f"{subject}: {promise}\n  found:    {found}\n  expected: {expected}")


def require_close(actual: Tensor, expected: Tensor, combination: Combination, promise: str, *, atol: float) -> None:
    """Fail unless the tensors differ by at most `atol`; 0 requires that they are bit-identical."""
    __tracebackhide__ = True
    difference = float((actual - expected).abs().max())
    require(
        difference <= atol,
        combination,
        promise,
        found=f"a difference of {difference:.3g}",
        expected="bit-identical values" if atol == 0 else f"at most {atol:g}",
    )


@dataclass(frozen=True)
class Trained:
    """One combination after its training, with an evaluation between the third and fourth step."""

    combination: Combination
    method: Method
    model: nn.Module
    # the base's own parameters with their values before `apply`, or after it if it moves them
    base: dict[str, tuple[nn.Parameter, Tensor]]
    head: set[int]  # ids of those of the base's parameters that belong to the head
    snapshots: list[dict[str, Tensor]]  # trainable parameters before training, at the evaluation, at the end
    evaluated: Tensor  # logits at the evaluation
    halfway: Path  # saved at the evaluation
    saved: Path  # at the end


def serve(folder: Path) -> None:
    """For each saved adapter named on standard input, write the logits that it gives on a new base."""
    for line in sys.stdin:
        request = json.loads(line)
        base = load(folder, request["family"], request["precision"])
        model = make_method(request["kind"], request["settings"]).load(base, Path(request["adapter"]))
        save_file({"logits": logits(model, request["family"]).contiguous()}, request["answer"])
        print("done", flush=True)


if __name__ == "__main__":
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    serve(Path(sys.argv[1]))
