"""Conversations as token ids, and which of them are answers: through a chat template, as generation will see them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from peftlab.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Message = dict[str, str]  # role and content

ANSWERS = "assistant"  # whose messages are learnt
# Some templates write today's date, and the same recipe would be another one tomorrow.
FIXED: dict[str, Any] = {"date_string": "26 Jul 2024"}
TRIAL: list[Message] = [
    {"role": "user", "content": "one"},
    {"role": ANSWERS, "content": "two"},
    {"role": "user", "content": "three"},
    {"role": ANSWERS, "content": "four"},
]


@dataclass(frozen=True)
class Tokens:
    """A conversation, tokenised."""

    ids: list[int]
    learnt: list[bool]  # whether a token is of an answer
    astride: int  # tokens half of an answer, and so not learnt


@dataclass(frozen=True)
class Template:
    """A tokenizer's chat template, or another in its place, known to let answers be found."""

    tokenizer: PreTrainedTokenizerBase
    source: str | None  # Jinja; the tokenizer's own if None
    special: frozenset[int]  # tokens that stand for no text
    stops: tuple[int, ...] = ()  # tokens that end an answer

    def prompt(self, messages: Sequence[Message], where: str) -> list[int]:
        """What an answer is generated from."""
        return self._ids(self._text(messages, where, answer=True))

    def tokens(self, messages: Sequence[Message], where: str) -> Tokens:
        """The whole conversation. Raises UserError if an answer cannot be found in it."""
        whole = self._text(messages, where)
        encoded = self.tokenizer(whole, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        ids, starts = list(encoded["input_ids"]), [start for start, _ in encoded["offset_mapping"]]
        learnt = [False] * len(ids)
        astride = 0
        for number, message in enumerate(messages):
            if message["role"] != ANSWERS:
                continue
            before = self._text(messages[:number], where, answer=True)
            after = self._text(messages[: number + 1], where)
            if not (after.startswith(before) and whole.startswith(after)):
                raise UserError(
                    f"{where}: messages: the chat template renders the conversation up to message {number + 1} "
                    "otherwise than as a part of the whole, so its answer cannot be found; give a plainer task.template"
                )
            first, split = _boundary(ids, starts, self._ids(before), len(before))
            end, _ = _boundary(ids, starts, self._ids(after), len(after))
            astride += split
            # What follows the token that ends the answer, a line feed mostly, is never generated.
            ends = [k for k in range(first, end) if ids[k] in self.special]
            for k in range(first, ends[-1] + 1 if ends else end):
                learnt[k] = True
            if not ends and number + 1 == len(messages):
                stop = end_of_text(self.tokenizer)
                ids, learnt = [*ids[:end], *stop], [*learnt[:end], *[True] * len(stop)]
        return Tokens(ids, learnt, astride)

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


def chat_template(tokenizer: PreTrainedTokenizerBase, source: str | None) -> Template:
    """The template, tried. Raises UserError if there is none, or answers cannot be told from what is around them."""
    if source is None and not tokenizer.chat_template:
        raise UserError(
            "task: this base's tokenizer has no chat template; take a base tuned to chat, or give task.template"
        )
    added = (number for number, token in tokenizer.added_tokens_decoder.items() if token.special)
    template = Template(tokenizer, source, frozenset([*tokenizer.all_special_ids, *added]))
    tokens = template.tokens(TRIAL, "task.template")
    if tokens.astride:
        raise UserError(
            "task: the tokenizer joins the end of the chat template's prompt and the beginning of an answer into one "
            "token, which generation would never see; give a task.template whose prompt ends in a line feed"
        )
    last = [token for token, learnt in zip(tokens.ids, tokens.learnt, strict=True) if learnt][-1]
    ends = [last] if last in template.special else []
    return replace(template, stops=tuple(dict.fromkeys([*ends, *end_of_text(tokenizer)])))


def end_of_text(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The token that ends everything, if the tokenizer has one."""
    return [] if tokenizer.eos_token_id is None else [int(tokenizer.eos_token_id)]


def _boundary(ids: list[int], starts: list[int], before: list[int], length: int) -> tuple[int, bool]:
    """The first token behind the `length` characters that are tokenised as `before`, and whether one lies astride.

    Tokens are compared, not only their offsets: a tokenizer that trims these hides the space that a word took with it.

    >>> _boundary([7, 8, 9], [0, 1, 3], [7, 8], 3), _boundary([7, 8, 9], [0, 1, 3], [7, 5], 2)
    ((2, False), (2, True))
    >>> _boundary([7, 8, 9], [0, 2, 3], [7, 5], 2)  # 8 is a space of the prompt and a word, from where the word begins
    (2, True)
    """
    if ids[: len(before)] == before:
        return len(before), False
    same = next((k for k, (one, other) in enumerate(zip(ids, before, strict=False)) if one != other), 0)
    return next((k for k in range(same + 1, len(ids)) if starts[k] >= length), len(ids)), True
