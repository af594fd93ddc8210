"""Multiple choice by likelihood: the most likely choice under a causal language model is the predicted answer."""

from __future__ import annotations

import itertools
import math
import string
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field

from peftlab.data.examples import Encoded, Example, Row
from peftlab.errors import UserError, nearest
from peftlab.tasks.attention_checks import no_decoder
from peftlab.tasks.conversation import ASSISTANT, chat_template
from peftlab.tasks.next_token import next_token_nats
from peftlab.tasks.task import IGNORED, Task, pad

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

# For a tokenizer without a chat template: the answer on a line of its own, and the end of the text.
PLAIN = (
    "{% for message in messages %}{{ message['content'] }}{{ '' if loop.last else '\n' }}{% endfor %}"
    "{{ '\n' if add_generation_prompt else '' }}"
)


class MultipleChoice(Task):
    """Choose the most likely answer to a prompt, with a causal language model.

    A row has `prompt`, `answer` and optionally its own `choices`. The answer is the correct choice, its number from 0,
    or its letter from A if the row has choices. Only the correct choice is learned.
    """

    kind: Literal["multiple_choice"] = "multiple_choice"
    auto_class: ClassVar[str] = "AutoModelForCausalLM"
    task_type: ClassVar[str] = "CAUSAL_LM"
    fields: ClassVar[tuple[str, ...]] = ("prompt", "answer")
    optional_fields: ClassVar[tuple[str, ...]] = ("choices",)
    visible_fields: ClassVar[tuple[str, ...]] = ("prompt", "choices")
    default_model: ClassVar[str | None] = "HuggingFaceTB/SmolLM2-135M-Instruct"
    new_head: ClassVar[bool] = False

    choices: Annotated[list[str], Field(min_length=2)] | None = Field(None, examples=[["yes", "no"]])
    """Choices of rows that have none of their own, e.g. [first, second]. Null: all answers in the data, sorted."""
    by_token: bool = False
    """Compare the mean log-likelihood per token. False: the sum, by which a longer answer is less likely."""
    template: str | None = Field(None, examples=["{% for message in messages %}{{ message.content }}{% endfor %}"])
    """Chat template (Jinja) in place of the tokenizer's own."""

    @classmethod
    def row_formats(cls) -> list[tuple[dict[str, Any], Mapping[str, Any]]]:
        with_choices = {"prompt": "Is it wet?", "choices": ["yes", "no"]}
        return [
            ({}, {"prompt": "Is it wet?", "answer": "yes"}),
            ({}, {**with_choices, "answer": "yes"}),
            ({}, {**with_choices, "answer": 0}),
        ]

    @property
    def selection(self) -> str:
        return "accuracy"

    @property
    def metrics(self) -> tuple[str, ...]:
        return ("accuracy", "calibration_error")

    def check_row(self, row: Row) -> None:
        _check(row, self.choices)

    def bind(self, rows: Iterable[Row]) -> MultipleChoice:
        seen: set[str] = set()
        for row in rows:
            self.check_row(row)
            if "choices" not in row.fields:
                seen.add(row.fields["answer"])
        if self.choices is not None or not seen:
            return self
        if len(seen) < 2:
            raise UserError(f"data: all answers are {seen.pop()!r}; give task.choices, or rows with choices")
        return self.model_copy(update={"choices": sorted(seen)})

    def model_settings(self) -> dict[str, Any]:
        return {}

    def incompatibility(self, model: PreTrainedModel) -> str | None:
        return no_decoder(model.config)

    def encode(self, rows: Sequence[Row], tokenizer: PreTrainedTokenizerBase, limit: int) -> Encoded:
        """One example per choice of each row."""
        source = self.template or (None if tokenizer.chat_template else PLAIN)
        template = chat_template(tokenizer, source)
        counts = {"truncated_prompts": 0}
        examples = []
        for row in rows:
            truncated = False
            for number, choice in enumerate(self._choices(row)):
                question = {"role": "user", "content": row.fields["prompt"]}
                tokens = template.tokens([question, {"role": ASSISTANT, "content": choice}], row.where)
                labels = [
                    token if is_answer else IGNORED
                    for token, is_answer in zip(tokens.ids, tokens.is_answer, strict=True)
                ]
                excess = len(labels) - limit
                answer_tokens = sum(label != IGNORED for label in labels)
                if excess > 0 and (not self.truncate or answer_tokens >= limit):
                    raise UserError(
                        f"{row.where}: {len(labels)} tokens with the choice {choice[:30]!r}, but at most {limit} fit"
                        + ("" if self.truncate else "; set task.truncate: true to cut the beginning of such prompts")
                    )
                truncated = truncated or excess > 0
                features = {"input_ids": tokens.ids[max(excess, 0) :], "labels": labels[max(excess, 0) :]}
                examples.append(Example({**features, "choice": [number]}, row))
            counts["truncated_prompts"] += truncated
        return Encoded(examples, counts)

    def training_examples(self, examples: Sequence[Example], limit: int) -> list[Example]:
        return [e for e in examples if self._choices(e.row)[e.features["choice"][0]] == self._answer(e.row)]

    def collate(self, examples: Sequence[Example], padding_token: int) -> dict[str, torch.Tensor]:
        return {
            "input_ids": pad([example.features["input_ids"] for example in examples], padding_token),
            "attention_mask": pad([[1] * len(example) for example in examples], 0),
            "labels": pad([example.features["labels"] for example in examples], IGNORED),
        }

    def loss(self, outputs: Any, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        return next_token_nats(outputs.logits, batch["labels"]).sum()

    def decode(self, outputs: Any, examples: Sequence[Example]) -> list[dict[str, Any]]:
        """Cross-entropy in nats and number of tokens of each choice; `merge` compares them."""
        import torch

        records = []
        for number, example in enumerate(examples):
            labels = torch.tensor([example.features["labels"]], device=outputs.logits.device)
            nats = next_token_nats(outputs.logits[number : number + 1, : len(example)], labels)
            records.append({"nats": float(nats.double().sum()), "tokens": len(nats)})
        return records

    def merge(self, records: Sequence[dict[str, Any]], examples: Sequence[Example]) -> list[dict[str, Any]]:
        merged = []
        pairs = zip(records, examples, strict=True)
        for _, group in itertools.groupby(pairs, key=lambda pair: id(pair[1].row)):
            choices = list(group)
            row = choices[0][1].row
            nats = [record["nats"] / (record["tokens"] if self.by_token else 1) for record, _ in choices]
            likelihoods = [math.exp(min(nats) - value) for value in nats]
            best = nats.index(min(nats))
            merged.append(
                {
                    "predicted": self._choices(row)[best],
                    "expected": self._answer(row),
                    "probability": likelihoods[best] / sum(likelihoods),
                    "prompt": row.fields["prompt"],
                    "nats": dict(zip(self._choices(row), nats, strict=True)),
                }
            )
        return merged

    def reference(self, row: Row) -> dict[str, Any]:
        return {"expected": self._answer(row)}

    def row_from_text(self, text: str, where: str) -> Row:
        if self.choices is None:
            raise UserError(f"{where}: a text alone has no choices: in training, each row had its own")
        return Row(where, {"prompt": text})

    @property
    def input_fields(self) -> tuple[str, ...]:
        return ("prompt",) if self.choices is not None else ("prompt", "choices")

    def sample_rows(self) -> list[Row]:
        choices = self.choices or ["yes", "no"]
        prompts = ["Wet?", "Is it?", "So?", "Ada met Max?"]
        own = {} if self.choices else {"choices": choices}
        return [
            Row(f"sample:{number}", {"prompt": prompt, **own, "answer": choices[number % 2]})
            for number, prompt in enumerate(prompts)
        ]

    def answer(self, record: dict[str, Any]) -> dict[str, Any]:
        """The chosen answer and its probability among the choices."""
        return {"answer": record["predicted"], "probability": round(record["probability"], 4)}

    def _choices(self, row: Row) -> list[str]:
        return list(row.fields.get("choices") or self.choices or [])

    def _answer(self, row: Row) -> str | None:
        """The correct choice; None if the row has no answer."""
        answer, choices = row.fields.get("answer"), self._choices(row)
        letters = dict(zip(string.ascii_uppercase, row.fields.get("choices") or [], strict=False))
        if isinstance(answer, int):
            return choices[answer]
        return answer if answer is None or answer in choices else letters.get(answer, answer)


def _check(row: Row, default_choices: list[str] | None) -> None:
    """Raise UserError if the row is bad. `default_choices` are those of a row without choices (None: any)."""
    prompt, answer, choices = (row.fields.get(field) for field in ("prompt", "answer", "choices"))
    letters = string.ascii_uppercase[: len(choices)] if isinstance(choices, (list, tuple)) else ""
    if not isinstance(prompt, str) or not prompt.strip():
        raise UserError(f"{row.where}: prompt: a string was expected, found {str(prompt)[:60]!r}")
    if choices is None:
        choices = default_choices
    elif not isinstance(choices, (list, tuple)) or len(choices) < 2 or not all(isinstance(c, str) for c in choices):
        raise UserError(
            f"{row.where}: choices: a list of at least two strings was expected, found {str(choices)[:60]!r}"
        )
    if choices is not None and len(set(choices)) < len(choices):
        raise UserError(f"{row.where}: choices: one is listed twice in {str(list(choices))[:80]}")
    if isinstance(answer, bool) or not isinstance(answer, (str, int)) or answer == "":
        raise UserError(f"{row.where}: answer: a choice or its number was expected, found {str(answer)[:60]!r}")
    if isinstance(answer, int):
        if choices is None or not 0 <= answer < len(choices):
            raise UserError(f"{row.where}: answer: {answer} is not the number of a choice; they count from 0")
    elif choices is not None and answer not in (*choices, *letters):
        raise UserError(f"{row.where}: answer: {answer!r} is not one of the choices{nearest(answer, choices)}")
