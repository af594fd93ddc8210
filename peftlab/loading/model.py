"""The base: pretrained model and tokenizer, frozen, perhaps quantised, on its device; its head float."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import transformers
from safetensors import SafetensorError

from peftlab.data.examples import Example
from peftlab.distributed import DeviceMap, dispatch
from peftlab.errors import UserError
from peftlab.loading.head import with_head
from peftlab.models import remote_code
from peftlab.models.model import Model, ModelFiles
from peftlab.quantization import Quantization
from peftlab.tasks.task import Task
from peftlab.training import out_of_memory

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

# Their positions start after the padding token's.
AFTER_PADDING = (
    *("camembert", "data2vec-text", "ibert", "longformer", "luke", "mpnet", "roberta", "roberta-prelayernorm"),
    *("xlm-roberta", "xlm-roberta-xl", "xmod"),
)

# Their positions are relative, without an end; what their config.json names is the length they were pretrained at.
RELATIVE = ("longt5", "mt5", "switch_transformers", "t5", "umt5")

_DROPOUT = re.compile(r"(dropout|pdrop|dropout_prob|dropout_rate|(?<!layer)drop)$")  # layerdrop drops whole layers


@dataclass(frozen=True)
class Base:
    """A model ready for a method to be applied."""

    model: PreTrainedModel
    head: tuple[str, ...]  # modules of the task's new head, by full name
    parameters: int  # logical: a packed 4-bit weight counts as the weights it holds
    files: ModelFiles


def within(name: str, modules: Iterable[str]) -> bool:
    """Whether a parameter is of one of these modules, wherever a method has moved them.

    >>> within("base_model.model.classifier.original_module.weight", ["classifier"])
    True
    """
    return any(f".{module}." in f".{name}" for module in modules)


def load_tokenizer(files: ModelFiles, task: Task) -> PreTrainedTokenizerBase:
    """The base's fast tokenizer, without any truncation or padding that its file may prescribe."""
    with _readable(files, "tokenizer"):
        # Segments go only to a model that has an embedding for the second: some tokenizers number them for every model.
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
    if len(tokenizer) <= len(tokenizer.all_special_tokens):  # made from nothing, where there is no file
        raise UserError(f"model: {files.source} has no usable tokenizer: its vocabulary is empty")
    if not tokenizer.is_fast:
        raise UserError(f"model: {files.source} has no fast tokenizer (tokenizer.json), which aligns words and tokens")
    tokenizer.backend_tokenizer.no_truncation()
    tokenizer.backend_tokenizer.no_padding()
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token
    if tokenizer.pad_token is None:
        raise UserError(f"model: {files.source} has a tokenizer without a token to pad with")
    return tokenizer


def longest_input(files: ModelFiles, task: Task, *, reserved: int = 0) -> int:
    """How many tokens an example may have: the recipe's word, within the base's positions less those `reserved`."""
    with _readable(files, "config"):
        config = json.loads((files.folder / "config.json").read_text(encoding="utf-8"))
    return longest(config, files.source, task, reserved=reserved)


def longest(config: Mapping[str, Any], source: str, task: Task, *, reserved: int = 0) -> int:
    """The same, by what is known of a config.json."""
    positions = config.get("max_position_embeddings") or config.get("n_positions")
    if positions is None or config.get("model_type") in RELATIVE:
        return task.max_length or 512
    if config.get("model_type") in AFTER_PADDING:
        positions -= config.get("pad_token_id", 1) + 1
    free = int(positions) - reserved
    if free < 1:
        raise UserError(f"method: its {reserved} virtual tokens take all {positions} positions of {source}")
    if task.max_length is not None and task.max_length > free:
        taken = f", of which the method takes {reserved}" if reserved else ""
        raise UserError(f"task.max_length: {task.max_length} tokens, but {source} has {positions} positions{taken}")
    return task.max_length or free


def refuse_unknown_tokens(base: Base, examples: Iterable[Example]) -> None:
    """Raise UserError if the tokenizer gave a token that the base has no embedding of."""
    embeddings: Any = base.model.get_input_embeddings()
    largest = max((max(example.features["input_ids"], default=0) for example in examples), default=0)
    if largest >= embeddings.num_embeddings:
        raise UserError(
            f"model: {base.files.source}: its tokenizer gives token {largest}, "
            f"but there are {embeddings.num_embeddings} embeddings: tokenizer and weights are not of one model"
        )


def load_base(
    model: Model,
    files: ModelFiles,
    task: Task,
    quantization: Quantization,
    *,
    device: torch.device,
    compute: torch.dtype,
    frozen: bool = True,
    dropout: float | None = 0.0,
    seed: int = 0,
    padding_token: int | None = None,
    device_map: DeviceMap | None = None,
) -> Base:
    """Load the base with the task's head.

    `compute` is the dtype of the frozen weights and of quantised matmuls; a base that trains (not `frozen`) stays
    float32, as does the head. `seed` draws the new head. `padding_token` is what batches are filled up with, if not
    what the base's config says. A `device_map` spreads the layers over all GPUs in place of the one `device`. Raises
    UserError if the base has no such head.
    """
    auto = getattr(transformers, task.auto_class)
    with _readable(files, f"config that serves {task.kind}"):
        config = transformers.AutoConfig.from_pretrained(
            files.folder, trust_remote_code=files.trusted, **task.model_settings()
        )
        if dropout is not None:
            set_dropout(config, dropout)
        with torch.device("meta"):
            skeleton = with_head(config, task, trusted=files.trusted)
    incompatibility = task.incompatibility(skeleton)
    if incompatibility is not None:
        raise UserError(f"task: {incompatibility}")
    head = head_modules(skeleton, task)
    dtype = compute if frozen else torch.float32

    def load() -> tuple[Any, list[str]]:
        """The model, and which of its tensors outside the head the files lack, or have in another shape."""
        settings: dict[str, Any] = {}
        quantized = quantization.config(kept_float(skeleton, head), dtype)
        if quantized is not None:
            settings = {"quantization_config": quantized, "device_map": {"": device}}
        if device_map is not None:
            settings |= dispatch.load_kwargs(device_map)
        torch.manual_seed(seed)
        with _readable(files, "weights in safetensors"), dispatch.explain_out_of_memory(device_map, files.source):
            model, report = auto.from_pretrained(
                files.folder,
                config=config,
                dtype=dtype,
                use_safetensors=True,
                trust_remote_code=files.trusted,
                ignore_mismatched_sizes=True,  # a head for other labels gives way to a new one
                output_loading_info=True,
                **settings,
            )
        known = tuple(f"{name}." for name in head)
        absent = {*report["missing_keys"], *(key for key, *_ in report["mismatched_keys"])}
        return model, sorted(key for key in absent if not key.startswith(known))

    loaded, missing = load()
    pooler = f"{loaded.base_model_prefix}.pooler"
    if task.new_head and any(key.startswith(f"{pooler}.") for key in missing):
        # A base of masked language modelling has none: it is as new as the head, so trained, saved and float with it.
        head = (pooler, *head)
        loaded, missing = load()
    if missing:  # the library would draw them at random, and say so where nobody looks
        raise UserError(
            f"model: {files.source} lacks {len(missing)} of the base's tensors, e.g. {missing[0]!r}, or has them in "
            "other shapes than its config.json says"
        )
    if device_map is not None:
        dispatch.require_gpus_only(loaded, device_map, files.source)
    elif not quantization.quantizes:
        loaded.to(device)
    loaded.requires_grad_(False)
    for name in head:
        loaded.get_submodule(name).float()
    quantization.prepare(loaded)
    if padding_token is not None:  # decoders look for the last token that is not this one to classify a text by
        loaded.config.get_text_config().pad_token_id = padding_token
    loaded.config._name_or_path = loaded.name_or_path = (
        model.id
    )  # an adapter names its base by id, not by a local folder
    return Base(loaded, head, count(skeleton) + _untied(loaded, skeleton), files)


@contextlib.contextmanager
def _readable(files: ModelFiles, what: str) -> Iterator[None]:
    """What the library says of files that it cannot make sense of, in one line."""
    try:
        yield
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
        if out_of_memory.is_out_of_memory(error):
            raise
        reason = " ".join((str(error) or type(error).__name__).split())[:200]
        raise UserError(f"model: {files.source} has no usable {what}: {reason}") from None
    except Exception as error:
        if not files.trusted or out_of_memory.is_out_of_memory(error):
            raise
        raise UserError(f"model: {files.source}: its own code gives no {what}: {remote_code.one_line(error)}") from None


def head_modules(model: PreTrainedModel, task: Task) -> tuple[str, ...]:
    """The modules that the task adds to the pretrained trunk; none for a task that uses the pretrained output."""
    if not task.new_head:
        return ()
    trunk = {model.base_model_prefix}
    if not hasattr(model, model.base_model_prefix):  # T5's question answering has the trunk's parts beside the head
        with torch.device("meta"):
            try:
                whole = transformers.AutoModel.from_config(model.config, trust_remote_code=False)
            except ValueError:
                raise UserError(
                    f"model: {type(model).__name__} does not say which part of it is pretrained (base_model_prefix)"
                ) from None
        trunk = {name for name, _ in whole.named_children()}
    return tuple(
        name for name, child in model.named_children() if name not in trunk and any(True for _ in child.parameters())
    )


def count(model: torch.nn.Module) -> int:
    """How many numbers the parameters of an unquantised model are, shared ones once."""
    return sum(parameter.numel() for parameter in model.parameters())


def _untied(loaded: PreTrainedModel, skeleton: PreTrainedModel) -> int:
    """The numbers of an output layer of its own, where the config ties it to the input's: T5 v1.1 and flan-T5."""
    if _tied(skeleton) and not _tied(loaded):
        return int(loaded.get_output_embeddings().weight.numel())
    return 0


def _tied(model: PreTrainedModel) -> bool:
    output = model.get_output_embeddings()
    return output is not None and output.weight is model.get_input_embeddings().weight


def kept_float(skeleton: PreTrainedModel, head: Sequence[str]) -> list[str]:
    """What must not be quantised. transformers' own guess misses a head with a bias, and a list replaces the guess."""
    output = skeleton.get_output_embeddings()
    return [*head, *(name for name, module in skeleton.named_modules() if output is not None and module is output)]


def set_dropout(config: PretrainedConfig, rate: float) -> None:
    """Of the base. A model that is saved has its published values again: see `publish_dropout`."""
    for name, value in config.to_dict().items():
        if _DROPOUT.search(name) and isinstance(value, (int, float)) and not isinstance(value, bool):
            setattr(config, name, rate)
    config.classifier_dropout = rate  # where a config does not name it, decoders' heads take 0.1


def publish_dropout(folder: Path, files: ModelFiles) -> None:
    """In the config of a model saved in `folder`, put the base's own dropout in place of the recipe's.

    The recipe's is of its training. Who trains the saved model on expects the base's, as after any other training.
    """
    path = folder / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    published = json.loads((files.folder / "config.json").read_text(encoding="utf-8"))
    names = [name for name in {**config, **published} if _DROPOUT.search(name)]
    kept = {name: value for name, value in config.items() if name not in names}
    kept |= {name: published[name] for name in names if name in published}  # or the architecture's default
    path.write_text(json.dumps(kept, indent=2, sort_keys=True) + "\n", encoding="utf-8")
