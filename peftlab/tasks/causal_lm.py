"""Causal language modelling: plain text, instructions, conversations; of the latter two, only answers are learnt."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from peftlab.data.examples import Encoded, Example, Row
from peftlab.errors import UserError
from peftlab.tasks.attention_checks import leak, no_decoder
from peftlab.tasks.conversation import ANSWERS, Message, chat_template, end_of_text
from peftlab.tasks.next_token import next_token_nats
from peftlab.tasks.packing import packed
from peftlab.tasks.task import IGNORED, Task, pad

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

Form = Literal["chat", "instruction", "text"]
FIELDS: dict[Form, tuple[str, ...]] = {
    "chat": ("messages",),
    "instruction": ("instruction", "output"),  # and perhaps input
    "text": ("text",),
}
ROLES = ("system", "user", ANSWERS, "tool")


class CausalLM(Task):
    """The next token: of `text`, of the `output` to an `instruction` (and `input`), of the answers in `messages`."""

    kind: Literal["causal_lm"] = "causal_lm"
    auto_class: ClassVar[str] = "AutoModelForCausalLM"
    task_type: ClassVar[str] = "CAUSAL_LM"
    fields: ClassVar[tuple[str, ...]] = ()
    optional_fields: ClassVar[tuple[str, ...]] = ("messages", "instruction", "input", "output", "text")
    visible_fields: ClassVar[tuple[str, ...]] = ("messages", "instruction", "input", "text")
    default_model: ClassVar[str | None] = "HuggingFaceTB/SmolLM2-135M-Instruct"
    lower_is_better: ClassVar[bool] = True
    new_head: ClassVar[bool] = False

    form: Form | None = None  # the first of these whose fields the rows have, if not given
    template: str | None = None  # Jinja, in place of the tokenizer's own chat template
    packing: bool = False  # train on several rows in one sequence of up to max_length tokens
    generate: int = Field(0, ge=0)  # examples of each split that are also answered in words, greedily
    new_tokens: int = Field(128, ge=1)  # of a generated answer, at most

    @property
    def selection(self) -> str:
        return "perplexity"

    @property
    def metrics(self) -> tuple[str, ...]:
        return ("perplexity", "rouge") if self.generate else ("perplexity",)

    @property
    def packs(self) -> bool:
        return self.packing

    def check_row(self, row: Row) -> None:
        form = self.form or _form(row)
        if form is None:
            wanted = ", or ".join(" and ".join(fields) for fields in FIELDS.values())
            raise UserError(f"{row.where}: has {', '.join(row.fields) or 'nothing'}; wanted {wanted}")
        _check(row, form)

    @classmethod
    def row_formats(cls) -> list[tuple[dict[str, Any], Mapping[str, Any]]]:
        rows = {form: cls(form=form).sample_rows()[0].fields for form in FIELDS}
        return [({"form": form}, fields) for form, fields in rows.items()]

    def bind(self, rows: Iterable[Row]) -> CausalLM:
        task = self
        for row in rows:
            task.check_row(row)
            if task.form is None:
                task = self.model_copy(update={"form": _form(row)})
        return task

    def model_settings(self) -> dict[str, Any]:
        # Packed rows are told apart only where there is no cache, and transformers makes one unless it is told not to.
        return {"use_cache": False} if self.packing else {}

    def incompatibility(self, model: PreTrainedModel) -> str | None:
        return no_decoder(model.config) or (leak(model.config) if self.packing else None)

    def encode(self, rows: Sequence[Row], tokenizer: PreTrainedTokenizerBase, limit: int) -> Encoded:
        template = None if self.form == "text" else chat_template(tokenizer, self.template)
        counts = {"truncated_rows": 0, "lost_targets": 0, "rows_without_targets": 0, "tokens_astride_an_answer": 0}
        examples = []
        for number, row in enumerate(rows):
            prompt, whole = self._parts(row)
            if template is None:
                ids, learnt = _text_ids(row.fields["text"], tokenizer, end=whole is not None)
            elif whole is not None:
                tokens = template.tokens(whole, row.where)
                ids, learnt = tokens.ids, tokens.learnt
                counts["tokens_astride_an_answer"] += tokens.astride
            else:
                ids = template.prompt(prompt, row.where)
                learnt = [False] * len(ids)
            labels = [token if learn else IGNORED for token, learn in zip(ids, learnt, strict=True)]
            labels[:1] = [IGNORED]  # nothing comes before it to tell it from
            if len(ids) > limit:
                if not self.truncate:
                    raise UserError(
                        f"{row.where}: {len(ids)} tokens, but at most {limit} fit; "
                        "set task.truncate: true to cut such rows and count what is lost"
                    )
                counts["truncated_rows"] += 1
                counts["lost_targets"] += sum(label != IGNORED for label in labels[limit:])
                # A prompt loses its beginning: its end is what is to be answered.
                ids, labels = (ids[:limit], labels[:limit]) if whole is not None else (ids[-limit:], labels[-limit:])
            if whole is not None and all(label == IGNORED for label in labels):
                counts["rows_without_targets"] += 1
            ask: list[int] = []
            if whole is None:
                ask = ids
            elif template is not None and number < self.generate and prompt:
                ask = template.prompt(prompt, row.where)[-limit:]
            examples.append(Example({"input_ids": ids, "labels": labels, "ask": ask}, row))
        return Encoded(examples, counts)

    def training_examples(self, examples: Sequence[Example], limit: int) -> list[Example]:
        learnable = [
            Example({**example.features, "ask": []}, example.row)
            for example in examples
            if any(label != IGNORED for label in example.features["labels"])
        ]
        return packed(learnable, limit) if self.packing else learnable

    def collate(self, examples: Sequence[Example], padding_token: int) -> dict[str, torch.Tensor]:
        batch = {
            "input_ids": pad([example.features["input_ids"] for example in examples], padding_token),
            "labels": pad([example.features["labels"] for example in examples], IGNORED),
        }
        batch["attention_mask"] = pad([[1] * len(example) for example in examples], 0)
        if "position_ids" in examples[0].features:
            # Padding is on the right, where a causal model does not look, and each token of it a row of its own.
            return {**batch, "position_ids": pad([example.features["position_ids"] for example in examples], 0)}
        if any(example.features["ask"] for example in examples):
            batch["ask"] = pad([example.features["ask"] or [IGNORED] for example in examples], IGNORED)
        return batch

    def model_inputs(self, batch: dict[str, torch.Tensor], model: torch.nn.Module) -> dict[str, torch.Tensor]:
        left_out = {"labels", "ask"}
        if "position_ids" in batch:  # transformers tells packed rows apart only where there is no mask
            left_out.add("attention_mask")
        return {name: tensor for name, tensor in batch.items() if name not in left_out}

    def loss(self, outputs: Any, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        return next_token_nats(outputs.logits, batch["labels"]).sum()

    def predict(
        self, model: torch.nn.Module, batch: dict[str, torch.Tensor], tokenizer: PreTrainedTokenizerBase
    ) -> Any:
        outputs = super().predict(model, batch, tokenizer)
        if "ask" in batch:
            stops = self._stops(tokenizer)
            asked = [row[row != IGNORED] for row in batch["ask"]]
            outputs["answers"] = [self._answer(model, ask, tokenizer, stops) if len(ask) else None for ask in asked]
        return outputs

    def generates(self, examples: Sequence[Example]) -> bool:
        return any(example.features["ask"] for example in examples)

    def decode(self, outputs: Any, examples: Sequence[Example]) -> list[dict[str, Any]]:
        import torch

        answers = outputs.get("answers") or [None] * len(examples)
        records = []
        for number, example in enumerate(examples):
            labels = torch.tensor([example.features["labels"]], device=outputs.logits.device)
            nats = next_token_nats(outputs.logits[number : number + 1, : len(example)], labels)
            prompt, _ = self._parts(example.row)
            records.append(
                {
                    "predicted": answers[number],
                    **self.reference(example.row),
                    "nats": float(nats.double().sum()),
                    "tokens": len(nats),
                    "asked": _asked(example.row, prompt),
                }
            )
        return records

    def reference(self, row: Row) -> dict[str, Any]:
        _, whole = self._parts(row)
        return {"expected": None if whole is None or self.form == "text" else whole[-1]["content"]}

    def to_metric_inputs(self, records: Sequence[dict[str, Any]]) -> Sequence[dict[str, Any]]:
        return [{**record, "expected": [record["expected"]]} for record in records]

    def row_from_text(self, text: str, where: str) -> Row:
        if self.form == "chat":
            return Row(where, {"messages": [{"role": "user", "content": text}]})
        return Row(where, {"instruction": text} if self.form == "instruction" else {"text": text, "continue": True})

    @property
    def input_fields(self) -> tuple[str, ...]:
        return ("messages",) if self.form == "chat" else (self.form or "text",)

    def inputs(self, row: Row) -> Row:
        fields = super().inputs(row).fields
        if self.form == "text":
            return Row(row.where, {"text": fields["text"], "continue": True})
        if self.form == "instruction":
            return Row(row.where, {name: fields[name] for name in ("instruction", "input") if name in fields})
        messages = list(fields["messages"])
        while messages and isinstance(messages[-1], dict) and messages[-1].get("role") == ANSWERS:
            messages.pop()
        _check_messages(Row(row.where, {"messages": [*messages, {"role": ANSWERS, "content": ""}]}))
        return Row(row.where, {"messages": messages})

    def sample_rows(self) -> list[Row]:
        texts = ["Ada met Max in Ulm", "It rained", "Yes", "They went home"]
        rows: list[dict[str, Any]] = [{"text": text} for text in texts]
        if self.form == "instruction":
            rows = [{"instruction": f"{k}?", "output": text} for k, text in enumerate(texts)]
        elif self.form == "chat":
            asked = {"role": "user", "content": "Why?"}
            rows = [{"messages": [asked, {"role": ANSWERS, "content": text}]} for text in texts]
        return [Row(f"sample:{number}", fields) for number, fields in enumerate(rows)]

    def answer(self, record: dict[str, Any]) -> dict[str, Any]:
        return {"text": record["asked"], "answer": record["predicted"]}

    def _parts(self, row: Row) -> tuple[list[Message], list[Message] | None]:
        """What the last answer answers, and the whole with it; None for a whole that ends without an answer."""
        if self.form == "text":
            return [], None if row.fields.get("continue") else []
        if self.form == "instruction":
            asked = "\n\n".join(part for part in (row.fields["instruction"], row.fields.get("input")) if part)
            messages = [{"role": "user", "content": asked}]
            if "output" in row.fields:
                messages.append({"role": ANSWERS, "content": row.fields["output"]})
        else:
            messages = [{"role": m["role"], "content": m["content"]} for m in row.fields["messages"]]
        if messages[-1]["role"] == ANSWERS:
            return messages[:-1], messages
        return messages, None

    def _stops(self, tokenizer: PreTrainedTokenizerBase) -> list[int]:
        return end_of_text(tokenizer) if self.form == "text" else list(chat_template(tokenizer, self.template).stops)

    def _answer(self, model: Any, ask: torch.Tensor, tokenizer: PreTrainedTokenizerBase, stops: Sequence[int]) -> str:
        """One at a time: padding on the left would move the positions that virtual tokens take."""
        ask, room = self._within_positions(model, ask)
        found = model.generate(
            input_ids=ask[None],
            attention_mask=ask.new_ones(1, len(ask)),
            max_new_tokens=room,
            # All that shapes the answer is said here, or the base's generation_config.json would have a say.
            num_beams=1,
            do_sample=False,
            min_length=0,
            repetition_penalty=1.0,
            no_repeat_ngram_size=0,
            use_cache=True,
            eos_token_id=list(stops) or None,
            pad_token_id=tokenizer.pad_token_id,
        )
        return str(tokenizer.decode(found[0, len(ask) :], skip_special_tokens=True)).strip()

    def _within_positions(self, model: Any, ask: torch.Tensor) -> tuple[torch.Tensor, int]:
        """The prompt, and how many tokens may follow it. One that leaves them too little room loses its beginning."""
        positions = getattr(model.config.get_text_config(), "max_position_embeddings", None)
        if positions is None:
            return ask, self.new_tokens
        adapters = getattr(model, "peft_config", {}).values()
        free = positions - sum(getattr(adapter, "num_virtual_tokens", None) or 0 for adapter in adapters)
        room = min(self.new_tokens, max(free - len(ask), free // 2))
        return ask[-(free - room) :], room


def _text_ids(text: str, tokenizer: PreTrainedTokenizerBase, *, end: bool) -> tuple[list[int], list[bool]]:
    """Plain text, and the token that ends it if it is whole; some tokenizers put that token there themselves."""
    ids = list(tokenizer(text, verbose=False)["input_ids"])
    stop = end_of_text(tokenizer)
    closed = bool(stop) and ids[-1:] == stop
    if end and not closed:
        ids += stop
    elif not end and closed:
        ids.pop()
    return ids, [True] * len(ids)


def _asked(row: Row, prompt: Sequence[Message]) -> str:
    return prompt[-1]["content"] if prompt else str(row.fields.get("text", ""))


def _form(row: Row) -> Form | None:
    return next((form for form, fields in FIELDS.items() if set(fields) <= row.fields.keys()), None)


def _check(row: Row, form: Form) -> None:
    for field in FIELDS[form]:
        if field not in row.fields:
            raise UserError(f"{row.where}: no {field}, as the {form} form wants it")
    if form == "chat":
        _check_messages(row)
        return
    for field in (*FIELDS[form], *(("input",) if form == "instruction" else ())):
        value = row.fields.get(field)
        if not isinstance(value, str) and not (field == "input" and value is None):
            raise UserError(f"{row.where}: {field}: a string was expected, found {str(value)[:60]!r}")
    first = FIELDS[form][0]
    if not row.fields[first].strip():
        raise UserError(f"{row.where}: {first}: is empty")


def _check_messages(row: Row) -> None:
    messages = row.fields["messages"]
    if not isinstance(messages, (list, tuple)) or not messages:
        raise UserError(f"{row.where}: messages: a list of messages was expected, found {str(messages)[:60]!r}")
    for number, message in enumerate(messages, start=1):
        where = f"{row.where}: messages: message {number}"
        if not isinstance(message, dict) or not {"role", "content"} <= message.keys():
            raise UserError(f"{where}: role and content were expected, found {str(message)[:60]!r}")
        if message["role"] not in ROLES:
            raise UserError(f"{where}: unknown role {str(message['role'])[:30]!r}; known are {', '.join(ROLES)}")
        if not isinstance(message["content"], str):
            raise UserError(f"{where}: content: a string was expected, found {str(message['content'])[:60]!r}")
    roles = [message["role"] for message in messages]
    if ANSWERS not in roles:
        raise UserError(f"{row.where}: messages: no message of the {ANSWERS}, so there is nothing to learn")
    if set(roles[: roles.index(ANSWERS)]) <= {"system"}:
        raise UserError(f"{row.where}: messages: the {ANSWERS} speaks before it is asked anything")
