"""Loading of a base: frozen weights, a float head at every quantization, one-line errors."""

import gc
import subprocess
import sys
import weakref
from collections.abc import Callable
from pathlib import Path

import huggingface_hub
import pytest
import torch
from bitsandbytes.nn import Linear4bit, Linear8bitLt
from huggingface_hub import errors
from safetensors.torch import load_file, save_file

from peftlab.distributed import dispatch
from peftlab.errors import UserError
from peftlab.loading.attach import apply_method
from peftlab.loading.model import Base, LoadOptions, load_base, load_tokenizer, longest_input
from peftlab.methods import TrainingPlan
from peftlab.methods.lora import Lora
from peftlab.models.model import Model, ModelFiles
from peftlab.quantization import Quantization
from peftlab.quantization.four_bit import NF4
from peftlab.quantization.int8 import Int8
from peftlab.quantization.none import NoQuantization
from peftlab.quantization.quantization import quantized_linears
from peftlab.recipe import load_recipe
from peftlab.sources import hub
from peftlab.tasks import Task
from peftlab.tasks.causal_lm import CausalLM
from peftlab.tasks.token_classification import TokenClassification
from tests.contract.bases import tiny

Load = Callable[..., Base]
Attach = Callable[..., torch.nn.Module]
Input = dict[str, torch.Tensor]


@pytest.mark.parametrize(("quantization", "kind"), [("nf4", Linear4bit), ("fp4", Linear4bit), ("int8", Linear8bitLt)])
def test_every_linear_except_the_head_is_quantized(base_of: Load, quantization: str, kind: type) -> None:
    base = base_of(quantization)
    names = quantized_linears(base.model)
    assert base.head == ("classifier",)
    assert len(names) == 36  # six layers of query, key, value, output and two of the feed-forward
    assert all(type(module) is kind for module in names.values())
    head = base.model.get_submodule("classifier")
    assert type(head) is torch.nn.Linear
    assert head.weight.dtype == torch.float32


@pytest.mark.parametrize("quantization", [Int8(), NF4()], ids=lambda quantization: quantization.kind)
def test_an_output_embedding_stays_float(quantization: Quantization, tmp_path: Path) -> None:
    tiny("llama", "AutoModelForCausalLM", num_key_value_heads=2, tie_word_embeddings=False).save_pretrained(tmp_path)
    files = ModelFiles(folder=tmp_path, source="a test", fingerprint="")
    name = Model(id=str(tmp_path))
    base = load_base(
        name, files, CausalLM(), quantization, LoadOptions(device=torch.device("cpu"), compute=torch.float32)
    )
    assert type(base.model.lm_head) is torch.nn.Linear
    assert len(quantized_linears(base.model)) == 2 * 7


def test_the_head_depends_on_the_seed_and_not_on_the_quantization(base_of: Load) -> None:
    heads = [base_of(kind, seed=3).model.classifier.weight for kind in ("none", "int8", "nf4")]
    assert torch.equal(heads[0], heads[1])
    assert torch.equal(heads[0], heads[2])
    assert not torch.equal(heads[0], base_of(seed=4).model.classifier.weight)


def test_a_four_bit_base_can_be_trained_after_an_evaluation(
    base_of: Load, attach: Attach, probe_input: Input, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As on a CPU with AVX512-BF16, where an evaluation repacks the weights for a kernel that has no backward.
    monkeypatch.setattr("bitsandbytes.nn.modules.has_avx512bf16", lambda: True)
    model = attach(base_of("nf4"))
    packed = {name: linear.weight.data.clone() for name, linear in quantized_linears(model).items()}  # type: ignore[operator,union-attr]
    model.eval()
    with torch.no_grad():
        before = model(**probe_input).logits
    for name, linear in quantized_linears(model).items():
        assert torch.equal(linear.weight.data, packed[name]), name  # type: ignore[arg-type,union-attr]
    model.train()
    model(**probe_input).logits.sum().backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)
    assert torch.equal(model(**probe_input).logits, before)


def test_an_int8_step_keeps_no_input_of_a_frozen_linear_and_its_gradient_is_the_same(
    base_of: Load, attach: Attach, probe_input: Input
) -> None:
    model = attach(base_of("int8"), Lora(rank=4, targets=["query"]))
    loss = model(**probe_input).logits.square().mean()
    loss.backward()
    gradient = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    for linear in quantized_linears(model).values():  # bitsandbytes as it is
        linear._forward_hooks.clear()
    model.zero_grad()
    model(**probe_input).logits.square().mean().backward()
    assert gradient
    for name, p in model.named_parameters():
        if p.grad is not None:
            assert torch.equal(gradient[name], p.grad), name


def test_an_int8_linear_does_not_retain_its_input(base_of: Load) -> None:
    linear = base_of("int8").model.bert.encoder.layer[0].intermediate.dense.train()
    given = torch.randn(4, 384, requires_grad=True)
    passed = given * 1  # what a layer before would hand over
    watched = weakref.ref(passed)
    output = linear(passed)
    del passed
    gc.collect()
    assert watched() is None
    output.sum().backward()
    assert given.grad is not None


@pytest.mark.parametrize("quantization", ["int8", "nf4"])
def test_a_quantized_layer_returns_the_dtype_of_autocast(base_of: Load, quantization: str) -> None:
    linear = base_of(quantization).model.bert.encoder.layer[0].intermediate.dense
    given = torch.randn(4, 384)
    assert linear(given).dtype == torch.float32
    with torch.autocast("cpu", torch.bfloat16):
        assert linear(given).dtype == torch.bfloat16


def test_no_gradient_is_computed_below_the_lowest_trained_layer(
    base_of: Load, recipe_file: Path, probe_input: Input
) -> None:
    changes = ["method.targets=[layer.4.attention.self.query]", "training.gradient_checkpointing=true"]
    base = base_of("nf4")
    model = apply_method(
        load_recipe(recipe_file, changes), base, TrainingPlan(optimizer_steps=10, task_type="TOKEN_CLS", head=base.head)
    ).train()
    needs: list[bool] = []
    computed: list[int] = []
    for layer in base.model.bert.encoder.layer:
        layer.register_forward_hook(lambda module, inputs, output: needs.append(output.requires_grad))
        layer.attention.register_forward_pre_hook(lambda module, inputs: computed.append(1))
    model(**probe_input).logits.sum().backward()
    assert needs == [False] * 4 + [True] * 2
    assert len(computed) == 8  # the last two again for the backward pass: checkpointing is on
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)


def test_a_method_is_initialized_from_the_recipes_seed_alone(base_of: Load, recipe_file: Path) -> None:
    starts = []
    for drawn_before in (0, 7):
        base = base_of()
        torch.rand(drawn_before)
        model = apply_method(
            load_recipe(recipe_file), base, TrainingPlan(optimizer_steps=10, task_type="TOKEN_CLS", head=base.head)
        )
        starts.append({name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad})
    assert any(".lora_A." in name for name in starts[0])
    assert [name for name, p in starts[0].items() if not torch.equal(p, starts[1][name])] == []


@pytest.mark.parametrize("quantization", ["none", "nf4"])
def test_a_frozen_base_has_the_compute_dtype_and_a_trained_one_float32(base_of: Load, quantization: str) -> None:
    frozen = base_of(quantization, compute=torch.bfloat16).model
    assert frozen.bert.embeddings.word_embeddings.weight.dtype == torch.bfloat16
    assert frozen.classifier.weight.dtype == torch.float32
    trained = base_of("none", compute=torch.bfloat16, frozen=False).model
    assert trained.bert.embeddings.word_embeddings.weight.dtype == torch.float32


def test_packed_parameters_are_counted_unpacked(base_of: Load) -> None:
    counts = {kind: base_of(kind).parameters for kind in ("none", "int8", "nf4")}
    assert counts["none"] == sum(p.numel() for p in base_of().model.parameters())
    assert counts["nf4"] == counts["int8"] == counts["none"]


def test_dropout_is_that_of_the_recipe_and_null_keeps_the_models(base_of: Load) -> None:
    def rates(**settings: object) -> set[float]:
        return {m.p for m in base_of(**settings).model.modules() if isinstance(m, torch.nn.Dropout)}

    assert rates() == {0.0}
    assert rates(dropout=0.3) == {0.3}
    assert rates(dropout=None) == {0.1}


def test_truncation_of_the_tokenizer_is_disabled(minilm: ModelFiles, tagging: Task) -> None:
    tokenizer = load_tokenizer(minilm, tagging)  # its file says to truncate at 128
    assert len(tokenizer(["word"] * 200, is_split_into_words=True)["input_ids"]) == 202


def test_the_longest_input_is_limited_by_recipe_and_model(minilm: ModelFiles) -> None:
    assert longest_input(minilm, TokenClassification()) == 512
    assert longest_input(minilm, TokenClassification(max_length=64)) == 64
    with pytest.raises(UserError, match=r"task.max_length: 513 tokens, but .* has 512 positions"):
        longest_input(minilm, TokenClassification(max_length=513))
    with pytest.raises(UserError, match="method: its 512 virtual tokens take all 512 positions of"):
        longest_input(minilm, TokenClassification(), reserved=512)


def test_weights_that_do_not_fit_in_memory_are_not_reported_as_broken(tmp_path: Path) -> None:
    with (tmp_path / "weights").open("wb") as file:
        file.truncate(2**30)
    code = (
        "import resource, sys, torch; from pathlib import Path; from peftlab.training import out_of_memory\n"
        "reach = int(Path('/proc/self/statm').read_text().split()[0]) * resource.getpagesize() + 50 * 2**20\n"
        "resource.setrlimit(resource.RLIMIT_AS, (reach, reach))\n"
        f"try: torch.UntypedStorage.from_file({str(tmp_path / 'weights')!r}, False, 2**30)\n"
        "except RuntimeError as error: print(error, out_of_memory.is_out_of_memory(error))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert done.stdout.endswith("Cannot allocate memory (12) True\n"), done.stderr


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        ({"model.safetensors": b"\x10\x00\x00\x00\x00\x00\x00\x00{}"}, "no usable weights in safetensors"),
        ({"model.safetensors": None, "pytorch_model.bin": b"a pickle"}, "no usable weights in safetensors"),
        ({"config.json": b"{"}, "no usable config"),
        (
            {"config.json": b'{"model_type": "qwen3", "num_hidden_layers": 3, "layer_types": ["full_attention"]}'},
            r"Class validation error .*num_hidden_layers` \(3\) must be equal to the number of `layer_types` \(1\)",
        ),
        (
            {"config.json": b'{"model_type": "vit"}'},
            ": a vit cannot serve token_classification: transformers has no AutoModelForTokenC",
        ),
    ],
)
def test_a_base_that_cannot_be_read_is_one_line(
    minilm: ModelFiles, tagging: Task, tmp_path: Path, damage: dict[str, bytes | None], says: str
) -> None:
    for name in ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"):
        if name not in damage:
            (tmp_path / name).symlink_to(minilm.folder / name)
    for name, content in damage.items():
        if content is not None:
            (tmp_path / name).write_bytes(content)

    def used(files: ModelFiles) -> None:
        longest_input(files, tagging)
        load_base(
            Model(id="mine"),
            files,
            tagging,
            NoQuantization(),
            LoadOptions(device=torch.device("cpu"), compute=torch.float32),
        )

    with pytest.raises(UserError, match=says) as caught:
        used(ModelFiles(folder=tmp_path, source="mine", fingerprint="0"))
    assert "\n" not in str(caught.value)


def test_a_base_that_lacks_tensors_is_not_filled_with_random_ones(
    minilm: ModelFiles, tagging: Task, tmp_path: Path
) -> None:
    (tmp_path / "config.json").symlink_to(minilm.folder / "config.json")
    tensors = load_file(minilm.folder / "model.safetensors")
    save_file({f"other.{name}": t for name, t in tensors.items()}, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match=r"mine lacks \d+ of the base's tensors, e.g. 'bert.embeddings"):
        load_base(
            Model(id="mine"),
            ModelFiles(folder=tmp_path, source="mine", fingerprint="0"),
            tagging,
            NoQuantization(),
            LoadOptions(device=torch.device("cpu"), compute=torch.float32),
        )


PARTS = ("bert.embeddings", "bert.encoder.layer", "bert.pooler", "classifier")


@pytest.mark.parametrize("quantization", ["none", "nf4"])
def test_a_device_map_places_the_base(
    base_of: Load, probe_input: Input, monkeypatch: pytest.MonkeyPatch, quantization: str
) -> None:
    expected = base_of(quantization).model(**probe_input).logits
    places = dict.fromkeys(PARTS, torch.device("cpu"))
    monkeypatch.setattr(dispatch, "load_kwargs", lambda device_map: {"device_map": places})
    model = base_of(quantization, device=torch.device("meta"), device_map="auto").model
    assert torch.equal(model(**probe_input).logits, expected)
    assert dispatch.devices(model) == (torch.device("cpu"),)


@pytest.mark.parametrize("place", ["cpu", "disk"])
@pytest.mark.parametrize("quantization", ["none", "int8", "nf4"])
def test_a_base_that_does_not_fit_on_the_gpus_is_one_error_line(
    base_of: Load, monkeypatch: pytest.MonkeyPatch, quantization: str, place: str
) -> None:
    places = {name: torch.device("meta") for name in PARTS} | {"classifier": place}
    monkeypatch.setattr(dispatch, "load_kwargs", lambda device_map: {"device_map": places})
    with pytest.raises(UserError, match=r"--device-map auto: .* does not fit on the GPUs of this machine") as caught:
        base_of(quantization, device_map="auto")
    assert "\n" not in str(caught.value)


def test_a_device_map_never_offloads_to_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    found = {0: 3 * 2**30, 1: 2**30, "cpu": 2**40}
    monkeypatch.setattr("accelerate.utils.get_max_memory", lambda: found)
    assert dispatch.load_kwargs("sequential") == {"device_map": "sequential", "max_memory": {0: 3 * 2**30, 1: 2**30}}


def test_a_base_without_a_tokenizer_is_one_line(minilm: ModelFiles, tagging: Task, tmp_path: Path) -> None:
    (tmp_path / "config.json").symlink_to(minilm.folder / "config.json")
    with pytest.raises(UserError, match="model: mine has no usable tokenizer"):
        load_tokenizer(ModelFiles(folder=tmp_path, source="mine", fingerprint="0"), tagging)


def test_the_base_is_recorded_by_its_id_and_not_by_a_local_folder(base_of: Load) -> None:
    assert base_of().model.config._name_or_path == "sentence-transformers/all-MiniLM-L6-v2"


def test_a_lost_connection_is_reported_with_the_reason_of_the_hub_client(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*arguments: object, **settings: object) -> str:
        raise errors.HTTPError("peer closed connection")  # type: ignore[attr-defined]

    monkeypatch.setattr(huggingface_hub, "snapshot_download", broken)
    with pytest.raises(hub.Unreachable, match="peer closed connection"):
        hub.snapshot("a/b", revision=None, patterns=["*"])


def test_a_chat_template_in_a_separate_file_is_part_of_a_base(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    before = Model(id=str(tmp_path)).files().fingerprint
    (tmp_path / "chat_template.jinja").write_text("{{ messages }}")
    assert Model(id=str(tmp_path)).files().fingerprint != before
