"""Causal language modeling: chats, instructions or plain text. Of chats and instructions, only answers are learned."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from peftlab.data.examples import Encoded, Example, Row
from peftlab.errors import UserError
from peftlab.models.text_branch import forget_positions
from peftlab.tasks.attention_checks import no_decoder, packing_leak
from peftlab.tasks.conversation import ASSISTANT, ChatTemplate, Message, chat_template, end_of_text
from peftlab.tasks.next_token import next_token_nats
from peftlab.tasks.packing import pack
from peftlab.tasks.task import IGNORED, Task, pad

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

Format = Literal["chat", "instruction", "text"]
FIELDS: dict[Format, tuple[str, ...]] = {
    "chat": ("messages",),
    "instruction": ("instruction", "output"),  # and optionally input
    "text": ("text",),
}
ROLES = ("system", "user", ASSISTANT, "tool")


class CausalLM(Task):
    """Continue text: chats (`messages`), instructions (`instruction`, `input`, `output`) or plain `text`.

    Only the assistant's messages, or the output, or the text are learned. The score is perplexity.
    """

    kind: Literal["causal_lm"] = "causal_lm"
    auto_class: ClassVar[str] = "AutoModelForCausalLM"
    task_type: ClassVar[str] = "CAUSAL_LM"
    fields: ClassVar[tuple[str, ...]] = ()
    optional_fields: ClassVar[tuple[str, ...]] = ("messages", "instruction", "input", "output", "text")
    visible_fields: ClassVar[tuple[str, ...]] = ("messages", "instruction", "input", "text")
    default_model: ClassVar[str | None] = "HuggingFaceTB/SmolLM2-135M-Instruct"
    lower_is_better: ClassVar[bool] = True
    new_head: ClassVar[bool] = False

    form: Format | None = None
    """Format of the rows: `chat`, `instruction` or `text`. Null: the first of these whose fields the first row has."""
    template: str | None = Field(None, examples=["{% for message in messages %}{{ message.content }}{% endfor %}"])
    """Chat template (Jinja) in place of the tokenizer's own."""
    packing: bool = False
    """Train on sequences of up to max_length tokens that hold several rows, none of which sees another."""
    generate: int = Field(0, ge=0)
    """Number of examples per split whose answer is generated, greedily, and scored by ROUGE, e.g. 100. 0: none."""
    new_tokens: int = Field(128, ge=1)
    """Maximum number of tokens of a generated answer."""

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
        form = self.form or _format(row)
        if form is None:
            expected = ", or ".join(" and ".join(fields) for fields in FIELDS.values())
            raise UserError(f"{row.where}: has {', '.join(row.fields) or 'no fields'}; expected {expected}")
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
                task = self.model_copy(update={"form": _format(row)})
        return task

    def model_settings(self) -> dict[str, Any]:
        # transformers separates packed rows only without a cache, and makes one by default.
        return {"use_cache": False} if self.packing else {}

    def incompatibility(self, model: PreTrainedModel) -> str | None:
        return no_decoder(model.config) or (packing_leak(model.config) if self.packing else None)

    def encode(self, rows: Sequence[Row], tokenizer: PreTrainedTokenizerBase, limit: int) -> Encoded:
        template = None if self.form == "text" else chat_template(tokenizer, self.template)
        counts = {"truncated_rows": 0, "lost_targets": 0, "rows_without_targets": 0, "tokens_astride_an_answer": 0}
        examples = []
        for number, row in enumerate(rows):
            prompt, full = self._messages(row)
            ids, is_target, straddling = self._tokens(row, tokenizer, template)
            counts["tokens_astride_an_answer"] += straddling
            labels = [token if target else IGNORED for token, target in zip(ids, is_target, strict=True)]
            labels[:1] = [IGNORED]  # no token precedes the first one
            if len(ids) > limit:
                if not self.truncate:
                    raise UserError(
                        f"{row.where}: {len(ids)} tokens, but at most {limit} fit; "
                        "set task.truncate: true to cut such rows and count what is lost"
                    )
                counts["truncated_rows"] += 1
                counts["lost_targets"] += sum(label != IGNORED for label in labels[limit:])
                # A prompt loses its beginning: the answer continues its end.
                ids, labels = (ids[:limit], labels[:limit]) if full is not None else (ids[-limit:], labels[-limit:])
            if full is not None and all(label == IGNORED for label in labels):
                counts["rows_without_targets"] += 1
            prompt_ids: list[int] = []  # to generate an answer from; empty if none is generated
            if full is None:
                prompt_ids = ids
            elif template is not None and number < self.generate and prompt:
                prompt_ids = template.prompt(prompt, row.where)[-limit:]
            examples.append(Example({"input_ids": ids, "labels": labels, "prompt": prompt_ids}, row))
        return Encoded(examples, counts)

    def training_examples(self, examples: Sequence[Example], limit: int) -> list[Example]:
        with_targets = [
            Example({**example.features, "prompt": []}, example.row)
            for example in examples
            if any(label != IGNORED for label in example.features["labels"])
        ]
        return pack(with_targets, limit) if self.packing else with_targets

    def collate(self, examples: Sequence[Example], padding_token: int) -> dict[str, torch.Tensor]:
        batch = {
            "input_ids": pad([example.features["input_ids"] for example in examples], padding_token),
            "labels": pad([example.features["labels"] for example in examples], IGNORED),
        }
        batch["attention_mask"] = pad([[1] * len(example) for example in examples], 0)
        if "position_ids" in examples[0].features:
            # Padding is on the right, which a causal model never sees; each padding token is a row of its own.
            return {**batch, "position_ids": pad([example.features["position_ids"] for example in examples], 0)}
        if any(example.features["prompt"] for example in examples):
            batch["prompt"] = pad([example.features["prompt"] or [IGNORED] for example in examples], IGNORED)
        return batch

    def model_inputs(self, batch: dict[str, torch.Tensor], model: torch.nn.Module) -> dict[str, torch.Tensor]:
        excluded = {"labels", "prompt"}
        if "position_ids" in batch:  # transformers separates packed rows only without an attention mask
            excluded.add("attention_mask")
        return {name: tensor for name, tensor in batch.items() if name not in excluded}

    def loss(self, outputs: Any, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        return next_token_nats(outputs.logits, batch["labels"]).sum()

    def predict(
        self, model: torch.nn.Module, batch: dict[str, torch.Tensor], tokenizer: PreTrainedTokenizerBase
    ) -> Any:
        outputs = super().predict(model, batch, tokenizer)
        if "prompt" in batch:
            stops = self._stops(tokenizer)
            prompts = [ids[ids != IGNORED] for ids in batch["prompt"]]
            outputs["answers"] = [
                self._generate(model, prompt, tokenizer, stops) if len(prompt) else None for prompt in prompts
            ]
        return outputs

    def generates(self, examples: Sequence[Example]) -> bool:
        return any(example.features["prompt"] for example in examples)

    def decode(self, outputs: Any, examples: Sequence[Example]) -> list[dict[str, Any]]:
        import torch

        answers = outputs.get("answers") or [None] * len(examples)
        records = []
        for number, example in enumerate(examples):
            labels = torch.tensor([example.features["labels"]], device=outputs.logits.device)
            nats = next_token_nats(outputs.logits[number : number + 1, : len(example)], labels)
            prompt, _ = self._messages(example.row)
            records.append(
                {
                    "predicted": answers[number],
                    **self.reference(example.row),
                    "nats": float(nats.double().sum()),
                    "tokens": len(nats),
                    "prompt": prompt[-1]["content"] if prompt else str(example.row.fields.get("text", "")),
                }
            )
        return records

    def reference(self, row: Row) -> dict[str, Any]:
        _, full = self._messages(row)
        return {"expected": None if full is None or self.form == "text" else full[-1]["content"]}

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
        while messages and isinstance(messages[-1], dict) and messages[-1].get("role") == ASSISTANT:
            messages.pop()
        _check_messages(Row(row.where, {"messages": [*messages, {"role": ASSISTANT, "content": ""}]}))
        return Row(row.where, {"messages": messages})

    def sample_rows(self) -> list[Row]:
        texts = ["Ada met Max in Ulm", "It rained", "Yes", "They went home"]
        rows: list[dict[str, Any]] = [{"text": text} for text in texts]
        if self.form == "instruction":
            rows = [{"instruction": f"{k}?", "output": text} for k, text in enumerate(texts)]
        elif self.form == "chat":
            question = {"role": "user", "content": "Why?"}
            rows = [{"messages": [question, {"role": ASSISTANT, "content": text}]} for text in texts]
        return [Row(f"sample:{number}", fields) for number, fields in enumerate(rows)]

    def answer(self, record: dict[str, Any]) -> dict[str, Any]:
        """The last message of the prompt as `text`, and the generated answer."""
        return {"text": record["prompt"], "answer": record["predicted"]}

    def _messages(self, row: Row) -> tuple[list[Message], list[Message] | None]:
        """The prompt of the last answer, and the full conversation; None for one that ends without an answer.

        For plain text both are empty, or the second is None if the text is to be continued.
        """
        if self.form == "text":
            return [], None if row.fields.get("continue") else []
        if self.form == "instruction":
            prompt = "\n\n".join(part for part in (row.fields["instruction"], row.fields.get("input")) if part)
            messages = [{"role": "user", "content": prompt}]
            if "output" in row.fields:
                messages.append({"role": ASSISTANT, "content": row.fields["output"]})
        else:
            messages = [{"role": m["role"], "content": m["content"]} for m in row.fields["messages"]]
        if messages[-1]["role"] == ASSISTANT:
            return messages[:-1], messages
        return messages, None

    def _tokens(
        self, row: Row, tokenizer: PreTrainedTokenizerBase, template: ChatTemplate | None
    ) -> tuple[list[int], list[bool], int]:
        """Token ids, for each whether it is a target, and the number of tokens that straddle prompt and answer."""
        prompt, full = self._messages(row)
        if template is None:
            ids = _text_ids(row.fields["text"], tokenizer, end=full is not None)
            return ids, [True] * len(ids), 0
        if full is None:
            ids = template.prompt(prompt, row.where)
            return ids, [False] * len(ids), 0
        tokens = template.tokens(full, row.where)
        return tokens.ids, tokens.is_answer, tokens.straddling

    def _stops(self, tokenizer: PreTrainedTokenizerBase) -> list[int]:
        """Ids of the tokens that end an answer."""
        return end_of_text(tokenizer) if self.form == "text" else list(chat_template(tokenizer, self.template).stops)

    def _generate(
        self, model: Any, prompt: torch.Tensor, tokenizer: PreTrainedTokenizerBase, stops: Sequence[int]
    ) -> str:
        """The answer to one prompt (length,). Not batched: left padding would shift the positions of virtual tokens."""
        prompt, new_tokens = self._fit_positions(model, prompt)
        sequences = model.generate(
            input_ids=prompt[None],
            attention_mask=prompt.new_ones(1, len(prompt)),
            max_new_tokens=new_tokens,
            # Everything that affects the answer is set, so that the base's generation_config.json has no effect.
            num_beams=1,
            do_sample=False,
            min_length=0,
            repetition_penalty=1.0,
            no_repeat_ngram_size=0,
            use_cache=True,
            eos_token_id=list(stops) or None,
            pad_token_id=tokenizer.pad_token_id,
        )
        forget_positions(model)
        return str(tokenizer.decode(sequences[0, len(prompt) :], skip_special_tokens=True)).strip()

    def _fit_positions(self, model: Any, prompt: torch.Tensor) -> tuple[torch.Tensor, int]:
        """The prompt, and how many tokens may follow it within the model's positions.

        A prompt that leaves less than half of the positions and less than `new_tokens` loses its beginning.
        """
        positions = getattr(model.config.get_text_config(), "max_position_embeddings", None)
        if positions is None:
            return prompt, self.new_tokens
        adapters = getattr(model, "peft_config", {}).values()
        free = positions - sum(getattr(adapter, "num_virtual_tokens", None) or 0 for adapter in adapters)
        new_tokens = min(self.new_tokens, max(free - len(prompt), free // 2))
        return prompt[-(free - new_tokens) :], new_tokens


def _text_ids(text: str, tokenizer: PreTrainedTokenizerBase, *, end: bool) -> list[int]:
    """Token ids of plain text, with the end-of-sequence token if `end`. Some tokenizers append it themselves."""
    ids = list(tokenizer(text, verbose=False)["input_ids"])
    stop = end_of_text(tokenizer)
    has_end = bool(stop) and ids[-1:] == stop
    if end and not has_end:
        ids += stop
    elif not end and has_end:
        ids.pop()
    return ids


def _format(row: Row) -> Format | None:
    return next((form for form, fields in FIELDS.items() if set(fields) <= row.fields.keys()), None)


def _check(row: Row, form: Format) -> None:
    """Raise UserError if the row does not have the format."""
    for field in FIELDS[form]:
        if field not in row.fields:
            raise UserError(f"{row.where}: no {field}, which task.form: {form} needs")
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
    if ASSISTANT not in roles:
        raise UserError(f"{row.where}: messages: no message of the {ASSISTANT}: there is nothing to learn")
    if set(roles[: roles.index(ASSISTANT)]) <= {"system"}:
        raise UserError(f"{row.where}: messages: no message of the user before the {ASSISTANT}'s first one")
