"""Conversations as token ids, through a chat template: which tokens are answers, as generation will see them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from peftlab.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Message = dict[str, str]  # role and content

ASSISTANT = "assistant"  # the role whose messages are learned
# Some templates write today's date, which would make the same recipe another one tomorrow.
FIXED: dict[str, Any] = {"date_string": "26 Jul 2024"}
TRIAL: list[Message] = [
    {"role": "user", "content": "one"},
    {"role": ASSISTANT, "content": "two"},
    {"role": "user", "content": "three"},
    {"role": ASSISTANT, "content": "four"},
]


@dataclass(frozen=True)
class ChatTokens:
    """A tokenized conversation."""

    ids: list[int]
    is_answer: list[bool]
    """True for each token of an answer, and for the token that ends it."""
    straddling: int
    """Number of tokens that contain both prompt and answer; they are not learned."""


@dataclass(frozen=True)
class ChatTemplate:
    """A chat template that has been checked: the answers in its text can be located."""

    tokenizer: PreTrainedTokenizerBase
    source: str | None
    """Jinja; None for the tokenizer's own template."""
    special: frozenset[int]
    """Ids of the special tokens."""
    stops: tuple[int, ...] = ()
    """Ids of the tokens that end an answer."""

    def prompt(self, messages: Sequence[Message], where: str) -> list[int]:
        """Token ids from which an answer to `messages` is generated."""
        return self._ids(self._text(messages, where, answer=True))

    def tokens(self, messages: Sequence[Message], where: str) -> ChatTokens:
        """The full conversation. Raises UserError if an answer cannot be located in it."""
        full = self._text(messages, where)
        encoded = self.tokenizer(full, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        ids, starts = list(encoded["input_ids"]), [start for start, _ in encoded["offset_mapping"]]
        is_answer = [False] * len(ids)
        straddling = 0
        for number, message in enumerate(messages):
            if message["role"] != ASSISTANT:
                continue
            before = self._text(messages[:number], where, answer=True)
            after = self._text(messages[: number + 1], where)
            if not (after.startswith(before) and full.startswith(after)):
                raise UserError(
                    f"{where}: messages: the chat template renders the conversation up to message {number + 1} "
                    "differently than as the beginning of the full conversation, so its answer cannot be located; "
                    "give a simpler task.template"
                )
            first, split = _boundary(ids, starts, self._ids(before), len(before))
            end, _ = _boundary(ids, starts, self._ids(after), len(after))
            straddling += split
            # Generation stops at the token that ends the answer: what follows, mostly a line feed, is never generated.
            ends = [k for k in range(first, end) if ids[k] in self.special]
            for k in range(first, ends[-1] + 1 if ends else end):
                is_answer[k] = True
            if not ends and number + 1 == len(messages):
                stop = end_of_text(self.tokenizer)
                ids, is_answer = [*ids[:end], *stop], [*is_answer[:end], *[True] * len(stop)]
        return ChatTokens(ids, is_answer, straddling)

    def _text(self, messages: Sequence[Message], where: str, *, answer: bool = False) -> str:
        from jinja2 import TemplateError

        try:
            text = self.tokenizer.apply_chat_template(
                list(messages), chat_template=self.source, tokenize=False, add_generation_prompt=answer, **FIXED
            )
        except (TemplateError, TypeError) as error:
            raise UserError(f"{where}: the chat template refuses this conversation: {error}") from None
        return str(text)

    def _ids(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])


def chat_template(tokenizer: PreTrainedTokenizerBase, source: str | None) -> ChatTemplate:
    """The checked template. Raises UserError if there is none, or if answers cannot be separated from their prompt."""
    if source is None and not tokenizer.chat_template:
        raise UserError(
            "task: this base's tokenizer has no chat template; use a base tuned for chat, or give task.template"
        )
    added = (number for number, token in tokenizer.added_tokens_decoder.items() if token.special)
    template = ChatTemplate(tokenizer, source, frozenset([*tokenizer.all_special_ids, *added]))
    tokens = template.tokens(TRIAL, "task.template")
    if tokens.straddling:
        raise UserError(
            "task: the tokenizer joins the end of the chat template's prompt and the beginning of an answer into one "
            "token, which generation would never see; give a task.template whose prompt ends in a line feed"
        )
    last = [token for token, is_answer in zip(tokens.ids, tokens.is_answer, strict=True) if is_answer][-1]
    ends = [last] if last in template.special else []
    return replace(template, stops=tuple(dict.fromkeys([*ends, *end_of_text(tokenizer)])))


def end_of_text(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The end-of-sequence token, if the tokenizer has one."""
    return [] if tokenizer.eos_token_id is None else [int(tokenizer.eos_token_id)]


def _boundary(ids: list[int], starts: list[int], prefix: list[int], length: int) -> tuple[int, bool]:
    """The first token after a prefix of `length` characters, and whether the token before it reaches beyond the prefix.

    `prefix` holds the token ids of the prefix alone. Tokens are compared, not only offsets: a tokenizer that trims
    offsets hides the space that belongs to a word.

    >>> _boundary([7, 8, 9], [0, 1, 3], [7, 8], 3), _boundary([7, 8, 9], [0, 1, 3], [7, 5], 2)
    ((2, False), (2, True))
    >>> _boundary([7, 8, 9], [0, 2, 3], [7, 5], 2)  # 8 is a space of the prefix and a word; its offset is the word's
    (2, True)
    """
    if ids[: len(prefix)] == prefix:
        return len(prefix), False
    same = next((k for k, (one, other) in enumerate(zip(ids, prefix, strict=False)) if one != other), 0)
    return next((k for k in range(same + 1, len(ids)) if starts[k] >= length), len(ids)), True
