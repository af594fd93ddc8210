"""Rows for the tests of question answering."""

from typing import Any

from peftlab.data.examples import Row

CONTEXT = "Mozart lived in Vienna. He died there in 1791, aged thirty-five."


LONG = "It rained. " * 30 + CONTEXT + " The sun shone." * 30


def row(answer: str | None = "in Vienna", context: str = CONTEXT, question: str = "Where did Mozart live?") -> Row:
    answers: dict[str, list[Any]] = {"text": [], "answer_start": []}
    if answer is not None:
        answers = {"text": [answer], "answer_start": [context.index(answer)]}
    return Row("mine.jsonl:7", {"question": question, "context": context, "answers": answers})
