"""Multiple choice by likelihood: of some answers to a prompt, the one that a causal language model finds likeliest."""

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
from peftlab.tasks.conversation import ANSWERS, chat_template
from peftlab.tasks.next_token import next_token_nats
from peftlab.tasks.task import IGNORED, Task, pad

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

# For a tokenizer without a chat template: the answer in a line of its own, and the end of the text.
PLAIN = (
    "{% for message in messages %}{{ message['content'] }}{{ '' if loop.last else '\n' }}{% endfor %}"
    "{{ '\n' if add_generation_prompt else '' }}"
)


class MultipleChoice(Task):
    """The likeliest of the row's `choices`, or of the task's, or of all answers there are. The right one is learnt.

    `answer` is the right choice, or its number from 0, or with choices of the row's own its letter from A.
    """

    kind: Literal["multiple_choice"] = "multiple_choice"
    auto_class: ClassVar[str] = "AutoModelForCausalLM"
    task_type: ClassVar[str] = "CAUSAL_LM"
    fields: ClassVar[tuple[str, ...]] = ("prompt", "answer")
    optional_fields: ClassVar[tuple[str, ...]] = ("choices",)
    visible_fields: ClassVar[tuple[str, ...]] = ("prompt", "choices")
    default_model: ClassVar[str | None] = "HuggingFaceTB/SmolLM2-135M-Instruct"
    new_head: ClassVar[bool] = False

    choices: Annotated[list[str], Field(min_length=2)] | None = None
    by_token: bool = False  # compare nats a token: otherwise a longer answer is a less likely one
    template: str | None = None  # Jinja, in place of the tokenizer's own chat template

    @classmethod
    def row_formats(cls) -> list[tuple[dict[str, Any], Mapping[str, Any]]]:
        asked = {"prompt": "Is it wet?", "choices": ["yes", "no"]}
        return [
            ({}, {"prompt": "Is it wet?", "answer": "yes"}),
            ({}, {**asked, "answer": "yes"}),
            ({}, {**asked, "answer": 0}),
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
        source = self.template or (None if tokenizer.chat_template else PLAIN)
        template = chat_template(tokenizer, source)
        counts = {"truncated_prompts": 0}
        examples = []
        for row in rows:
            cut = False
            for number, choice in enumerate(self._choices(row)):
                asked = {"role": "user", "content": row.fields["prompt"]}
                tokens = template.tokens([asked, {"role": ANSWERS, "content": choice}], row.where)
                labels = [token if learnt else IGNORED for token, learnt in zip(tokens.ids, tokens.learnt, strict=True)]
                over = len(labels) - limit
                answer = sum(label != IGNORED for label in labels)
                if over > 0 and (not self.truncate or answer >= limit):
                    raise UserError(
                        f"{row.where}: {len(labels)} tokens with the choice {choice[:30]!r}, but at most {limit} fit"
                        + ("" if self.truncate else "; set task.truncate: true to cut the beginning of such prompts")
                    )
                cut = cut or over > 0
                features = {"input_ids": tokens.ids[max(over, 0) :], "labels": labels[max(over, 0) :]}
                examples.append(Example({**features, "choice": [number]}, row))
            counts["truncated_prompts"] += cut
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
            of_row = list(group)
            row = of_row[0][1].row
            nats = [record["nats"] / (record["tokens"] if self.by_token else 1) for record, _ in of_row]
            shares = [math.exp(min(nats) - value) for value in nats]
            best = nats.index(min(nats))
            merged.append(
                {
                    "predicted": self._choices(row)[best],
                    "expected": self._answer(row),
                    "probability": shares[best] / sum(shares),
                    "prompt": row.fields["prompt"],
                    "nats": dict(zip(self._choices(row), nats, strict=True)),
                }
            )
        return merged

    def reference(self, row: Row) -> dict[str, Any]:
        return {"expected": self._answer(row)}

    def row_from_text(self, text: str, where: str) -> Row:
        if self.choices is None:
            raise UserError(f"{where}: the choices were each row's own; there are none for a text alone")
        return Row(where, {"prompt": text})

    @property
    def input_fields(self) -> tuple[str, ...]:
        return ("prompt",) if self.choices is not None else ("prompt", "choices")

    def sample_rows(self) -> list[Row]:
        choices = self.choices or ["yes", "no"]
        prompts = ["Wet?", "Is it?", "So?", "Ada met Max?"]
        return [
            Row(f"sample:{number}", {"prompt": prompt, "answer": choices[number % 2]})
            for number, prompt in enumerate(prompts)
        ]

    def answer(self, record: dict[str, Any]) -> dict[str, Any]:
        return {"answer": record["predicted"], "probability": round(record["probability"], 4)}

    def _choices(self, row: Row) -> list[str]:
        return list(row.fields.get("choices") or self.choices or [])

    def _answer(self, row: Row) -> str | None:
        answer, choices = row.fields.get("answer"), self._choices(row)
        letters = dict(zip(string.ascii_uppercase, row.fields.get("choices") or [], strict=False))
        if isinstance(answer, int):
            return choices[answer]
        return answer if answer is None or answer in choices else letters.get(answer, answer)


def _check(row: Row, known: list[str] | None) -> None:
    prompt, answer, choices = (row.fields.get(field) for field in ("prompt", "answer", "choices"))
    letters = string.ascii_uppercase[: len(choices)] if isinstance(choices, (list, tuple)) else ""
    if not isinstance(prompt, str) or not prompt.strip():
        raise UserError(f"{row.where}: prompt: a text was expected, found {str(prompt)[:60]!r}")
    if choices is None:
        choices = known
    elif not isinstance(choices, (list, tuple)) or len(choices) < 2 or not all(isinstance(c, str) for c in choices):
        raise UserError(f"{row.where}: choices: a list of two texts or more was expected, found {str(choices)[:60]!r}")
    if choices is not None and len(set(choices)) < len(choices):
        raise UserError(f"{row.where}: choices: one stands twice in {str(list(choices))[:80]}")
    if isinstance(answer, bool) or not isinstance(answer, (str, int)) or answer == "":
        raise UserError(f"{row.where}: answer: a choice or its number was expected, found {str(answer)[:60]!r}")
    if isinstance(answer, int):
        if choices is None or not 0 <= answer < len(choices):
            raise UserError(f"{row.where}: answer: {answer} is the number of no choice; they count from 0")
    elif choices is not None and answer not in (*choices, *letters):
        raise UserError(f"{row.where}: answer: {answer!r} is no choice{nearest(answer, choices)}")
