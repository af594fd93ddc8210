"""The base model: pretrained, frozen, optionally quantized, on its device, with a head in float32; its tokenizer."""

from __future__ import annotations

import contextlib
import copy
import json
import re
import shutil
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import transformers
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError

from peftlab.data.examples import Example
from peftlab.distributed import DeviceMap, dispatch
from peftlab.errors import UserError
from peftlab.loading import stored_quantization
from peftlab.loading.direct_reads import directly_read
from peftlab.loading.head import require_compatible, with_head
from peftlab.loading.text_trunk import refuse_float_experts, text_trunk
from peftlab.methods.trunk import Trunk
from peftlab.models import remote_code
from peftlab.models.facts import facts_of, learn
from peftlab.models.model import Model, ModelFiles
from peftlab.models.text_branch import auto_class, counts_outside, outside, text_values
from peftlab.quantization import Quantization
from peftlab.tasks.task import Task
from peftlab.training import out_of_memory

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

PROCESSORS = "*processor_config.json"
"""Pattern of the files that transformers' processors read."""

_DROPOUT = re.compile(r"(dropout|pdrop|dropout_prob|dropout_rate|(?<!layer)drop)$")
_LAYER_DROP = re.compile(r"layerdrop$")  # leaves out whole layers at random: M2M100, NLLB-MoE, SeamlessM4T


PEFT_HEADS = {"classifier", "score", "qa_outputs"}
"""Names of modules that PEFT saves of itself; within a module that is saved they would be wrapped twice."""


@dataclass(frozen=True)
class Base:
    """A model to which a method can be attached."""

    model: PreTrainedModel
    head: tuple[str, ...]
    """Full names of the modules of the task's new head."""
    parameters: int
    """Number of parameters; a packed 4-bit tensor counts as the weights it holds."""
    files: ModelFiles
    outside_text: Mapping[str, int] = field(default_factory=dict)
    """Parts of a multimodal model that text does not reach, e.g. its vision tower, with their parameters."""
    dequantized: str | None = None
    """Format in which the files store the weights, if they were dequantized."""
    trunk: Trunk = field(default_factory=Trunk)
    packed: frozenset[str] | None = None
    """Full names of the modules and weights that the quantization packs; None without quantization."""
    read_directly: Sequence[str] = ()
    """Linear layers that are not quantized because the model reads their weights itself."""


def within(name: str, modules: Iterable[str]) -> bool:
    """True if a parameter belongs to one of these modules, also after a method has wrapped them.

    >>> within("base_model.model.classifier.original_module.weight", ["classifier"])
    True
    """
    return any(f".{module}." in f".{name}" for module in modules)


def load_tokenizer(files: ModelFiles, task: Task) -> PreTrainedTokenizerBase:
    """The base's fast tokenizer, without the truncation and padding that its file may set. Raises UserError."""
    with _readable(files, "tokenizer"):
        # Token types only for a model with an embedding of the second: some tokenizers return them for every model.
        config = transformers.AutoConfig.from_pretrained(files.folder, trust_remote_code=files.trusted)
        segments = getattr(config, "type_vocab_size", None) or 0
        inputs = ["input_ids", *(["token_type_ids"] if segments > 1 else []), "attention_mask"]
        tokenizer = transformers.AutoTokenizer.from_pretrained(
            files.folder, model_input_names=inputs, trust_remote_code=files.trusted
        )
        if task.pretokenized and getattr(tokenizer, "add_prefix_space", None) is False:
            tokenizer = transformers.AutoTokenizer.from_pretrained(
                files.folder, model_input_names=inputs, add_prefix_space=True, trust_remote_code=files.trusted
            )
    if len(tokenizer) <= len(tokenizer.all_special_tokens):  # transformers made it without a file
        raise UserError(f"model: {files.source} has no usable tokenizer: its vocabulary is empty")
    if tokenizer.is_fast:
        tokenizer.backend_tokenizer.no_truncation()
        tokenizer.backend_tokenizer.no_padding()
    elif task.needs_fast_tokenizer:
        raise UserError(f"model: {files.source} has no fast tokenizer (tokenizer.json), which aligns words and tokens")
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token
    if tokenizer.pad_token is None:
        raise UserError(f"model: {files.source} has a tokenizer without a padding, end or unknown token")
    task.prepare_tokenizer(tokenizer)
    return tokenizer


def longest_input(files: ModelFiles, task: Task, *, reserved: int = 0) -> int:
    """Most tokens of an example: the task's `max_length`, or the base's positions less `reserved`. Raises UserError."""
    with _readable(files, "config"):
        config = json.loads((files.folder / "config.json").read_text(encoding="utf-8"))
    return longest_of_config(config, files.source, task, reserved=reserved)


def longest_of_config(config: Mapping[str, Any], source: str, task: Task, *, reserved: int = 0) -> int:
    """Most tokens of an example, from the values of a config.json. Raises UserError."""
    config = text_values(config)
    positions = config.get("max_position_embeddings") or config.get("n_positions")
    if positions is None:
        return task.max_length or 512
    facts = facts_of(config["model_type"])
    if facts.unlimited:
        return task.max_length or 512
    if facts.after_padding:
        positions -= config.get("pad_token_id", 1) + 1
    free = int(positions) - reserved
    if free < 1:
        raise UserError(f"method: its {reserved} virtual tokens take all {positions} positions of {source}")
    if task.max_length is not None and task.max_length > free:
        taken = f", of which the method takes {reserved}" if reserved else ""
        raise UserError(f"task.max_length: {task.max_length} tokens, but {source} has {positions} positions{taken}")
    return task.max_length or free


def refuse_unknown_tokens(base: Base, examples: Iterable[Example], new: Collection[int] = ()) -> None:
    """Raise UserError if the examples have a token without an embedding in the base, other than the `new` ones."""
    embeddings: Any = base.model.get_input_embeddings()
    ids = (example.features["input_ids"] for example in examples)
    old = ([token for token in sequence if token not in new] for sequence in ids) if new else ids
    largest = max((max(sequence, default=0) for sequence in old), default=0)
    if largest >= embeddings.num_embeddings:
        raise UserError(
            f"model: {base.files.source}: its tokenizer gives token {largest}, "
            f"but there are {embeddings.num_embeddings} embeddings: tokenizer and weights belong to different models"
        )


@dataclass(frozen=True, kw_only=True)
class LoadOptions:
    """Where and how `load_base` loads a base model."""

    device: torch.device
    compute: torch.dtype
    """Dtype of the frozen weights and of quantized matmuls. The head is float32 in any case."""
    frozen: bool = True
    """False if the base itself is trained: it is then loaded in float32."""
    dropout: float | None = 0.0
    """Dropout probability in the base; None: as in its config."""
    seed: int = 0
    """Seed of the initial values of a new head."""
    padding_token: int | None = None
    """Token id in place of the one in the base's config."""
    device_map: DeviceMap | None = None
    """Places the layers on all GPUs, in place of `device`."""


def load_base(model: Model, files: ModelFiles, task: Task, quantization: Quantization, options: LoadOptions) -> Base:
    """Load the base with the task's head. Raises UserError if the base has no such head, or its files are damaged."""
    config, skeleton = _skeleton(files, task, options.dropout)
    learn(config.to_dict())
    head = head_modules(skeleton, task)
    stored = stored_quantization.stored_quantization(config.to_dict()) is not None
    dequantized = stored_quantization.dequantized_from(config.to_dict(), quantization)
    reason = stored_quantization.incompatible_with(config.to_dict(), quantization)
    if reason is not None:
        raise UserError(f"model: {files.source}: {reason}")
    refuse_float_experts(quantization, text_trunk(skeleton, head), options.compute)
    read_directly = [] if stored else directly_read(skeleton, task, quantization)
    device_map = options.device_map
    dtype = options.compute if options.frozen else torch.float32

    def load() -> tuple[Any, list[str]]:
        """The model, and the names of its tensors outside the head that the files lack or have in another shape."""
        placement: dict[str, Any] = {} if device_map is None else dispatch.load_kwargs(device_map)
        keep, loaded_config = kept_float(skeleton, head), copy.deepcopy(config)
        if stored:  # in which the checkpoint decides what is quantized
            placement |= stored_quantization.load_kwargs(loaded_config, quantization, keep, dtype)
            placement.setdefault("device_map", {"": options.device})
        elif (quantized := quantization.config([*keep, *read_directly], dtype)) is not None:
            placement = {"quantization_config": quantized, "device_map": {"": options.device}, **placement}
        torch.manual_seed(options.seed)
        with _readable(files, "weights in safetensors"), dispatch.explain_out_of_memory(device_map, files.source):
            model, report = auto_class(task.auto_class, config).from_pretrained(
                files.folder,
                config=loaded_config,
                dtype=dtype,
                use_safetensors=True,
                trust_remote_code=files.trusted,
                ignore_mismatched_sizes=True,  # a new head replaces one for other labels
                output_loading_info=True,
                **placement,
            )
        if stored and not quantization.quantizes and getattr(model, "is_quantized", False):
            model.dequantize(dtype)
        absent = {*report["missing_keys"], *(key for key, *_ in report["mismatched_keys"])}
        return model, sorted(key for key in absent if not key.startswith(tuple(f"{name}." for name in head)))

    loaded, missing = load()
    pooler = f"{loaded.base_model_prefix}.pooler"
    if task.new_head and any(key.startswith(f"{pooler}.") for key in missing):
        # The files of a masked language model have no pooler: it is new like the head, so it is part of the head.
        head = (pooler, *head)
        loaded, missing = load()
    _require_complete(files, missing)
    if device_map is not None:
        dispatch.require_gpus_only(loaded, device_map, files.source)
    elif not quantization.quantizes:
        loaded.to(options.device)
    _freeze(loaded, head, model.id, options.padding_token)
    quantization.prepare(loaded)
    return Base(
        model=loaded,
        head=head,
        parameters=count(skeleton) + _untied(loaded, skeleton),
        files=files,
        outside_text=counts_outside(skeleton, head),
        dequantized=dequantized,
        read_directly=read_directly,
        trunk=text_trunk(skeleton, head),
        packed=quantization.packed(loaded),
    )


def _skeleton(files: ModelFiles, task: Task, dropout: float | None) -> tuple[PretrainedConfig, PreTrainedModel]:
    """The base's config for this task, and a model of it on the meta device. Raises UserError."""
    with _readable(files, f"config that serves {task.kind}"):
        config = transformers.AutoConfig.from_pretrained(
            files.folder, trust_remote_code=files.trusted, **task.model_settings()
        )
        if dropout is not None:
            set_dropout(config, dropout)
        with torch.device("meta"):
            skeleton = with_head(config, task, trusted=files.trusted)
    require_compatible(skeleton, task)
    return config, skeleton


def _require_complete(files: ModelFiles, missing: Sequence[str]) -> None:
    """Raise UserError if tensors are missing: transformers initializes them at random, with a warning only."""
    if missing:
        raise UserError(
            f"model: {files.source} lacks {len(missing)} of the base's tensors, e.g. {missing[0]!r}, or has them in "
            "other shapes than its config.json says"
        )


def _freeze(model: Any, head: Sequence[str], model_id: str, padding_token: int | None) -> None:
    """Freeze all parameters, convert the head to float32 and complete the config."""
    model.requires_grad_(False)
    for name in head:
        model.get_submodule(name).float()
    if padding_token is not None:  # a decoder classifies a text by its last token that is not this one
        model.config.get_text_config().pad_token_id = padding_token
    model.config._name_or_path = model.name_or_path = model_id  # an adapter names its base by id, not by a folder


@contextlib.contextmanager
def _readable(files: ModelFiles, what: str) -> Iterator[None]:
    """Raise the errors of libraries about the base's files as UserError, in one line."""
    try:
        yield
    except UserError as error:
        raise UserError(str(error).replace("model: ", f"model: {files.source}: ", 1)) from None
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError, StrictDataclassError) as error:
        if out_of_memory.is_out_of_memory(error):
            raise
        reason = " ".join((str(error) or type(error).__name__).split())[:200]
        raise UserError(f"model: {files.source} has no usable {what}: {reason}") from None
    except ImportError as error:
        library = re.search(r"requires the (\S+) library", str(error))
        if library is None:
            raise
        package = library[1].lower()
        raise UserError(
            f"model: {files.source}: its {what} needs the package {package}, which is not installed: "
            f'pip install "peftlab[translation]"'
        ) from None
    except Exception as error:
        if not files.trusted or out_of_memory.is_out_of_memory(error):
            raise
        raise UserError(
            f"model: {files.source}: its own code failed to load the {what}: {remote_code.one_line(error)}"
        ) from None


def head_modules(model: PreTrainedModel, task: Task) -> tuple[str, ...]:
    """Full names of the modules that the task adds to the pretrained trunk; none if it uses the pretrained output."""
    if not task.new_head:
        return ()
    trunk = {model.base_model_prefix}
    if not hasattr(model, model.base_model_prefix):  # T5 for question answering has the trunk's parts next to the head
        with torch.device("meta"):
            try:
                trunk_model = transformers.AutoModel.from_config(model.config, trust_remote_code=False)
            except ValueError:
                raise UserError(
                    f"model: {type(model).__name__} does not say which part of it is pretrained (base_model_prefix)"
                ) from None
        trunk = {name for name, _ in trunk_model.named_children()}
    return tuple(
        part
        for name, child in model.named_children()
        if name not in trunk and any(True for _ in child.parameters())
        for part in _parts(name, child, model)
    )


def _parts(name: str, module: torch.nn.Module, model: PreTrainedModel) -> list[str]:
    """The module of a head, or its children where PEFT would take another module for it or one of them for a head.

    PEFT compares the ends of names: a part of BigBird's head ends in qa_outputs, ModernVBERT's vision tower in head.
    """
    children = [child for child, part in module.named_children() if any(True for _ in part.parameters())]
    others = any(other != name and other.endswith(name) for other, _ in model.named_modules())
    if not children or not (others or PEFT_HEADS.intersection(children)):
        return [name]
    return [f"{name}.{child}" for child in children]


def count(model: torch.nn.Module) -> int:
    """Number of parameters of a model without quantization; tied ones count once."""
    return sum(parameter.numel() for parameter in model.parameters())


def _untied(loaded: PreTrainedModel, skeleton: PreTrainedModel) -> int:
    """Number of parameters of an output layer that the config ties and the files do not: T5 v1.1 and flan-T5."""
    if _tied(skeleton) and not _tied(loaded):
        return int(loaded.get_output_embeddings().weight.numel())
    return 0


def _tied(model: PreTrainedModel) -> bool:
    output = model.get_output_embeddings()
    return output is not None and output.weight is model.get_input_embeddings().weight


def kept_float(skeleton: PreTrainedModel, head: Sequence[str]) -> list[str]:
    """Modules that are not quantized. transformers' own choice, which a list replaces, misses a head with a bias.

    Vision and audio towers stay as they are: a text never shows what quantization changes in them.
    """
    output = skeleton.get_output_embeddings()
    return [
        *head,
        *outside(skeleton, head),
        *(name for name, module in skeleton.named_modules() if output is not None and module is output),
    ]


def set_dropout(config: PretrainedConfig, rate: float) -> None:
    """Set every dropout probability of the base, and let no layer be left out, whose method would get no gradient.

    `publish_dropout` restores the published values in a saved model.
    """
    for part in {id(each): each for each in (config, config.get_text_config())}.values():
        for name, value in part.to_dict().items():
            if not isinstance(value, (int, float)) or isinstance(value, bool):
                continue
            if _DROPOUT.search(name):
                setattr(part, name, rate)
            elif _LAYER_DROP.search(name):
                setattr(part, name, 0.0)
    config.classifier_dropout = rate  # heads of decoders use 0.1 if the config does not name it


def publish_dropout(folder: Path, files: ModelFiles) -> None:
    """Restore the base's published dropout in the config of a model saved in `folder`.

    The recipe's dropout belongs to its training; whoever trains the saved model further expects the base's.
    """
    path = folder / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    published = json.loads((files.folder / "config.json").read_text(encoding="utf-8"))
    path.write_text(json.dumps(_dropout_of(published, config), indent=2, sort_keys=True) + "\n", encoding="utf-8")


def publish_processors(folder: Path, files: ModelFiles) -> None:
    """Copy the settings of a multimodal base's image and audio processors next to a model saved in `folder`."""
    for path in files.folder.glob(PROCESSORS):
        shutil.copyfile(path, folder / path.name)


def _dropout_of(published: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, Any]:
    """The config with the published dropout, or without: the architecture's default. Nested configs likewise.

    >>> _dropout_of({"dropout": 0.1, "text_config": {}}, {"dropout": 0, "text_config": {"n": 1, "attn_pdrop": 0}})
    {'text_config': {'n': 1}, 'dropout': 0.1}
    """
    changed = {name for name in {**config, **published} if _DROPOUT.search(name) or _LAYER_DROP.search(name)}
    values = {name: value for name, value in config.items() if name not in changed}
    values |= {name: value for name, value in published.items() if name in changed}
    for name, value in values.items():
        if isinstance(value, dict):
            values[name] = _dropout_of(published.get(name) or {}, value)
    return values
