"""Sequence to sequence: a text from a text, e.g. a summary, a headline or a translation."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from peftlab import metrics
from peftlab.data.examples import Encoded, Example, Row
from peftlab.errors import UserError
from peftlab.tasks import languages
from peftlab.tasks.task import IGNORED, Task, pad

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

BATCH = 1000  # rows per call of the tokenizer
SHIFT = "prepare_decoder_input_ids_from_labels"  # transformers' method, which M2M100, Blenderbot and others lack


class Seq2Seq(Task):
    """Turn a text into another, e.g. summarize or translate, with an encoder-decoder.

    A row has `source` and `target`. Scores are those of generated texts. A run counts the tokens of sources and
    targets; `batch_tokens` limits those of the sources alone.
    """

    kind: Literal["seq2seq"] = "seq2seq"
    auto_class: ClassVar[str] = "AutoModelForSeq2SeqLM"
    task_type: ClassVar[str] = "SEQ_2_SEQ_LM"
    fields: ClassVar[tuple[str, ...]] = ("source", "target")
    visible_fields: ClassVar[tuple[str, ...]] = ("source",)
    default_model: ClassVar[str | None] = "traceforge/flan-t5-small-titles"
    new_head: ClassVar[bool] = False
    needs_fast_tokenizer: ClassVar[bool] = False
    baseline_rule: ClassVar[str] = "copies the source"
    added_fields: ClassVar[Mapping[str, Any]] = {"source_language": None, "target_language": None}

    prefix: str = ""
    """Text before every source, e.g. "summarize: "."""
    source_language: str | None = Field(None, min_length=1, examples=["eng_Latn"])
    """Language of the sources, as a code of the base's tokenizer, e.g. eng_Latn for NLLB, en for M2M100, en_XX for
    mBART. Null: the tokenizer has no language codes."""
    target_language: str | None = Field(None, min_length=1, examples=["deu_Latn"])
    """Language of the targets, as a code of the base's tokenizer, e.g. deu_Latn, de or de_DE. A generated text starts
    with it. Null: the tokenizer has no language codes."""
    max_target: int = Field(128, ge=2)
    """Maximum number of tokens of a target in training."""
    max_new_tokens: int = Field(64, ge=1)
    """Maximum number of tokens of a generated text."""
    beams: int = Field(1, ge=1, le=64)
    """Beams of the search. 1: greedy decoding."""
    length_penalty: float = 1.0
    """Exponent of the length by which a beam's score is divided: above 0 favors longer texts, below 0 shorter ones."""
    no_repeat_ngram: int = Field(0, ge=0)
    """Length in tokens of n-grams that may not occur twice in a generated text. 0: all may."""
    select_by: Literal["rouge1", "rouge2", "rougeL", "bleu", "chrf"] = "rougeL"
    """Score by which the best checkpoint and learning rate are selected."""

    @property
    def selection(self) -> str:
        return self.select_by

    @property
    def metrics(self) -> tuple[str, ...]:
        return ("rouge", "bleu", "chrf")

    def bind(self, rows: Iterable[Row]) -> Seq2Seq:
        for row in rows:
            for field in self.fields:
                value = row.fields[field]
                if not isinstance(value, str) or not value.strip():
                    raise UserError(f"{row.where}: {field}: a string was expected, found {str(value)[:60]!r}")
        return self.model_copy()

    def model_settings(self) -> dict[str, Any]:
        return {}

    def incompatibility(self, model: PreTrainedModel) -> str | None:
        config: Any = model.config
        if not getattr(config, "is_encoder_decoder", False):
            return f"{config.model_type} has no decoder that reads an encoder's output, which seq2seq needs"
        if not _starts(model):
            return f"the config of {config.model_type} has no decoder_start_token_id, with which a text starts"
        return None

    def prepare_tokenizer(self, tokenizer: PreTrainedTokenizerBase) -> None:
        languages.set_languages(tokenizer, self.source_language, self.target_language, prefix=self.prefix)

    def generation_settings(self, tokenizer: PreTrainedTokenizerBase) -> dict[str, int]:
        return languages.generation_start(tokenizer, self.target_language)

    def encode(self, rows: Sequence[Row], tokenizer: PreTrainedTokenizerBase, limit: int) -> Encoded:
        sources, truncated_sources = self._tokens("source", rows, tokenizer, limit)
        labels: list[list[int]] = [[] for _ in rows]
        truncated_targets = 0
        if rows and "target" in rows[0].fields:
            labels, truncated_targets = self._tokens("target", rows, tokenizer, self.max_target)
            labels = languages.without_start(labels, tokenizer, self.target_language)
        examples = [
            Example({"input_ids": ids, "labels": target}, row)
            for ids, target, row in zip(sources, labels, rows, strict=True)
        ]
        return Encoded(examples, {"truncated_sources": truncated_sources, "truncated_targets": truncated_targets})

    def lengths(self, example: Example) -> tuple[int, ...]:
        return len(example), len(example.features["labels"])

    def collate(self, examples: Sequence[Example], padding_token: int) -> dict[str, torch.Tensor]:
        return {
            "input_ids": pad([example.features["input_ids"] for example in examples], padding_token),
            "attention_mask": pad([[1] * len(example) for example in examples], 0),
            "labels": pad([example.features["labels"] for example in examples], IGNORED),
        }

    def model_inputs(self, batch: dict[str, torch.Tensor], model: torch.nn.Module) -> dict[str, torch.Tensor]:
        shifted = decoder_inputs(model, batch["labels"])
        return {**super().model_inputs(batch, model), "decoder_input_ids": shifted}

    def stretched(self, example: Example, length: int) -> Example:
        longer = super().stretched(example, length)
        target = example.features["labels"]
        labels = [target[i % len(target)] for i in range(min(length, self.max_target))]
        return Example({**longer.features, "labels": labels}, example.row)

    def loss(self, outputs: Any, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        from torch.nn.functional import cross_entropy

        return cross_entropy(
            outputs.logits.float().flatten(0, 1), batch["labels"].flatten(), ignore_index=IGNORED, reduction="sum"
        )

    def predict(
        self, model: torch.nn.Module, batch: dict[str, torch.Tensor], tokenizer: PreTrainedTokenizerBase
    ) -> list[str]:
        start = self.generation_settings(tokenizer)
        # Everything that affects the text is set, so that the base's generation_config.json has no effect.
        sequences = model.generate(  # type: ignore[operator]
            input_ids=batch["input_ids"],
            attention_mask=batch["attention_mask"],
            max_new_tokens=self.max_new_tokens,
            min_length=0,
            num_beams=self.beams,
            length_penalty=self.length_penalty,
            no_repeat_ngram_size=self.no_repeat_ngram,
            repetition_penalty=1.0,
            early_stopping=False,
            do_sample=False,
            **start,
        )
        # A language code is not special to every tokenizer that writes it.
        tokens = [[token for token in sequence if token not in start.values()] for sequence in sequences.tolist()]
        texts: list[str] = tokenizer.batch_decode(tokens, skip_special_tokens=True)
        return texts

    def generates(self, examples: Sequence[Example]) -> bool:
        return True

    def decode(self, outputs: Any, examples: Sequence[Example]) -> list[dict[str, Any]]:
        return [
            {
                "source": example.row.fields["source"],
                "predicted": text.strip(),
                "expected": example.row.fields.get("target"),
            }
            for text, example in zip(outputs, examples, strict=True)
        ]

    def to_metric_inputs(self, records: Sequence[dict[str, Any]]) -> Sequence[dict[str, Any]]:
        return [{**record, "expected": [record["expected"]]} for record in records]

    def constant_baseline(self, train: Sequence[Row], rows: Sequence[Row]) -> dict[str, float]:
        """Scores of copying the source."""
        records = [{"predicted": row.fields["source"].strip(), **self.reference(row)} for row in rows]
        return metrics.score(self.metrics, self.to_metric_inputs(records))

    def row_from_text(self, text: str, where: str) -> Row:
        return Row(where, {"source": text})

    def sample_rows(self) -> list[Row]:
        pairs = [
            ("Ada met Max in Ulm.", "Ada met Max"),
            ("Max was not in Bonn.", "no Max"),
            ("It rains.", "rain"),
            ("Ada and Max went to Ulm by train.", "to Ulm"),
        ]
        return [Row(f"sample:{source}", {"source": source, "target": target}) for source, target in pairs]

    def answer(self, record: dict[str, Any]) -> dict[str, Any]:
        return {"text": record["predicted"]}

    def _tokens(
        self, field: str, rows: Sequence[Row], tokenizer: PreTrainedTokenizerBase, limit: int
    ) -> tuple[list[list[int]], int]:
        """Token ids of a field, at most `limit` per row, and the number of rows that were truncated."""
        argument, prefix = ("text", self.prefix) if field == "source" else ("text_target", "")
        ids_of_rows: list[list[int]] = []
        truncated = 0
        for start in range(0, len(rows), BATCH):
            chunk = rows[start : start + BATCH]
            texts = [prefix + row.fields[field] for row in chunk]
            tokens = tokenizer(**{argument: texts}, verbose=False)["input_ids"]
            for row, text, ids in zip(chunk, texts, tokens, strict=True):
                if len(ids) > limit:
                    if not self.truncate:
                        setting = "task.max_length" if field == "source" else "task.max_target"
                        raise UserError(
                            f"{row.where}: {field}: {len(ids)} tokens, but at most {limit} fit ({setting}); "
                            "set task.truncate: true to cut such texts and count them"
                        )
                    ids = tokenizer(**{argument: text}, truncation=True, max_length=limit)["input_ids"]
                    truncated += 1
                ids_of_rows.append(ids)
        if tokenizer.is_fast:
            tokenizer.backend_tokenizer.no_truncation()  # else truncation would be saved with the tokenizer
        return ids_of_rows, truncated


def decoder_inputs(model: Any, labels: torch.Tensor) -> torch.Tensor:
    """What the decoder reads to predict `labels` (batch, length): the same tokens one position later.

    The architecture's own method, if it has one: mBART and FSMT start with the last token of a target.
    """
    if hasattr(model, SHIFT):
        shifted: torch.Tensor = getattr(model, SHIFT)(labels=labels.clone())  # FSMT's writes padding into them
        return shifted
    start = _decoder_start(model.config)
    assert start is not None  # else the model was refused
    return shift_right(labels, start=start, padding=model.config.get_text_config().pad_token_id)


def shift_right(labels: torch.Tensor, *, start: int, padding: int) -> torch.Tensor:
    """`start` and all labels but the last, with `padding` in place of ignored ones; (batch, length) int64.

    >>> import torch
    >>> shift_right(torch.tensor([[5, 6, 2], [7, 2, -100]]), start=2, padding=1).tolist()
    [[2, 5, 6], [2, 7, 2]]
    """
    shifted = labels.roll(1, dims=1)
    shifted[:, 0] = start
    return shifted.masked_fill(shifted == IGNORED, padding)


def _starts(model: Any) -> bool:
    """True if it is known with which token the decoder starts."""
    import torch

    if not hasattr(model, SHIFT):
        return _decoder_start(model.config) is not None
    try:
        decoder_inputs(model, torch.zeros(1, 1, dtype=torch.int64))
    except (ValueError, AttributeError):  # what architectures raise where their config lacks the token
        return False
    return True


def _decoder_start(config: Any) -> int | None:
    """The token that transformers starts a generation with."""
    for part in (config, config.get_text_config(decoder=True)):
        start = getattr(part, "decoder_start_token_id", None)
        start = getattr(part, "bos_token_id", None) if start is None else start
        if start is not None:
            return int(start)
    return None
