"""Tokens whose embeddings a method trains: found in the tokenizer, or added to it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from peftlab.data.examples import Example
from peftlab.errors import UserError
from peftlab.methods.method import TrainedToken

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def add_tokens(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> tuple[TrainedToken, ...]:
    """The tokens with these texts; the tokenizer gets those that it lacks. Raises UserError."""
    from transformers import AddedToken

    vocabulary = tokenizer.get_vocab()
    pieces = {}
    for text in texts:
        known = vocabulary.get(text)
        pieces[text] = [known] if known is not None else tokenizer(text, add_special_tokens=False)["input_ids"]
        if not pieces[text]:
            raise UserError(f"method.train_tokens: the tokenizer drops {text!r}: it has no pieces to start from")
    # Not special: an answer is decoded without special tokens, and these belong to it.
    tokenizer.add_tokens([AddedToken(text, normalized=False) for text in texts if text not in vocabulary])
    ids = tokenizer.get_vocab()
    return tuple(TrainedToken(text=text, id=ids[text], pieces=tuple(pieces[text])) for text in texts)


def describe(tokens: Sequence[TrainedToken], examples: Iterable[Example]) -> str:
    """How often each token occurs in the training examples, for the console. Raises UserError if one never does."""
    wanted = {token.id for token in tokens}
    counts: Counter[int] = Counter()
    for example in examples:
        occurrences = (
            {each: list(values).count(each) for each in wanted.intersection(values)}
            for name, values in example.features.items()
            if name in ("input_ids", "labels")
        )
        counts.update(max(occurrences, key=lambda found: sum(found.values()), default={}))
    for token in tokens:
        if not counts[token.id]:
            raise UserError(
                f"method.train_tokens: {token.text!r} (id {token.id}) is in no training example, so there is nothing "
                "to learn its embedding from; check its spelling, or leave it out"
            )
    return ", ".join(
        f"{token.text} ({'new' if token.is_new else 'known'}, id {token.id}) {counts[token.id]:,} times in train"
        for token in tokens
    )
