"""The language of the code and the docs: terms of torch, transformers, peft and accelerate, American spelling."""

from __future__ import annotations

import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FOLDERS = ("peftlab", "tests", "docs", "recipes")
PAGES = ("README.md", "CONTRIBUTING.md", "SECURITY.md", "benchmarks/README.md", "Makefile", ".ci/run", "pyproject.toml")
SUFFIXES = {".py", ".md", ".yaml", ".toml", ".html", ".tex", ".j2"}  # CHANGELOG and LOG record what was said then

# Words that this project once used in a sense of its own, and the term for it. A pattern matches whole words.
WORDS = {
    r"hollow": "a model without weights is on the meta device, its tensors are fake",
    r"foretold|forecasts?": "estimate",
    r"ledgers?": "profile",
    r"patients?": "probe model, the doctor's tiny one",
    r"keepers?": "checkpoint callback",
    r"findings": "analysis",
    r"strangers?": "unexpected, or untrusted",
    r"objections?": "incompatibility",
    r"starters?": "default model",
    r"graded": "metric inputs",
    r"hopeless": "all trials failed",
    r"untouched": "base model, or unchanged",
    r"floors?": "constant baseline",
    r"grounds?(?!.truth)": "environment",
    r"(?<!about:)blank(?! lines?)": "degenerate, or empty",
    r"fitted": "bound, of a task",
    r"beside": "next to, or in addition to",
    r"told": "reported, configured or passed",
    r"anew": "again, or from scratch",
    r"go on|goes on|gone on|went on|going on": "resume, or continue",
    r"a meeting of|meetings?": "a collective call",
    r"in a row": "a device mesh, or one after another",
    r"taken over": "read from the environment",
    r"let go|lets go": "reshard, or release",
    r"drawn out": "stretched",
    r"bears? out": "confirm",
    r"want of memory": "out of memory",
    r"what is asked of": "what an interface requires",
    r"whole (?:tensors?|weights?|copy|copies|states?|parameters?)": "full",
    r"in shares|shares? of (?:the|a|its) (?:model|weights?|parameters?|tensors?|base)": "sharded, a shard",
    r"shall|whilst": "must, will; while",
    r"(?:un|de|re)?(?:quantis|optimis|initialis|normalis|recognis|summaris|randomis|regularis|serialis)\w*": "-iz-",
    r"(?:behaviour|colour|favour|neighbour|honour)\w*": "-or",
    r"licences?|licenced|centres?|centred|catalogues?|judgements?|labelled|labelling|modelled": "American spelling",
    r"learnt|misspelt|spelt|spoilt|dreamt": "-ed",
}
ANY = re.compile(rf"\b(?:{'|'.join(WORDS)})\b", re.IGNORECASE)  # one search per line is faster than one per word
PATTERNS = {re.compile(rf"\b(?:{words})\b", re.IGNORECASE): term for words, term in WORDS.items()}

# Where such a word is right: file and word, with the reason.
ALLOWED: dict[tuple[str, str], str] = {
    ("peftlab/results/version_1.py", "floor"): "key of result.json, version 1",
    ("peftlab/results/version_1.py", "untouched"): "key of result.json, version 1",
    ("peftlab/profiling/measure.py", "floor"): "math.floor",
    ("peftlab/suites/profiles.py", "ledger"): "key of a stored profile, version 1",
    ("peftlab/suites/profiles.py", "ledgers"): "folder of stored profiles, version 1",
    ("tests/suites/test_profiles.py", "ledger"): "key of a stored profile, version 1",
    ("tests/suites/test_profiles.py", "ledgers"): "folder of stored profiles, version 1",
    ("peftlab/tasks/languages.py", "behaviour"): "key of a tokenizer_config.json",
    ("tests/tasks/test_languages.py", "behaviour"): "key of a tokenizer_config.json",
    ("peftlab/cli/renamed.py", "ledger"): "former name of a command, which leads to the new one",
    ("tests/cli/test_app.py", "ledger"): "former name of a command, which leads to the new one",
}


def files() -> list[Path]:
    paths = [path for folder in FOLDERS for path in (ROOT / folder).rglob("*") if path.suffix in SUFFIXES]
    paths += [ROOT / name for name in PAGES if (ROOT / name).exists()]
    return sorted(path for path in paths if path.name != Path(__file__).name)


def written(path: Path) -> Iterator[tuple[int, str]]:
    """Line numbers and text: of Python each name, string and comment, of other files each line."""
    text = path.read_text(encoding="utf-8")
    if path.suffix != ".py":
        yield from enumerate(map(separate, text.splitlines()), 1)
        return
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type in (tokenize.NAME, tokenize.STRING, tokenize.COMMENT):
            for offset, line in enumerate(token.string.splitlines()):
                yield token.start[0] + offset, separate(line)


def separate(text: str) -> str:
    """Text with the words of identifiers separated.

    >>> separate("what_is_told: OptimizerState")
    'what is told: Optimizer State'
    """
    return re.sub(r"(?<=[a-z])(?=[A-Z])", " ", text.replace("_", " "))


def violations(path: Path) -> list[str]:
    name = path.relative_to(ROOT).as_posix()
    return [
        f"{name}:{number}: {match[0]!r} -> {term}"
        for number, text in written(path)
        if ANY.search(text)
        for pattern, term in PATTERNS.items()
        for match in pattern.finditer(text)
        if (name, match[0].lower()) not in ALLOWED
    ]


@pytest.mark.parametrize("folder", [*FOLDERS, "."])
def test_no_private_word_and_no_british_spelling(folder: str) -> None:
    paths = [path for path in files() if (path.relative_to(ROOT).parts[0] if folder in FOLDERS else folder) == folder]
    if folder == ".":
        paths = [path for path in paths if path.relative_to(ROOT).parts[0] not in FOLDERS]
    assert [line for path in paths for line in violations(path)] == []


def test_every_exemption_is_needed() -> None:
    for name, word in ALLOWED:
        assert any(re.search(rf"\b{word}\b", text, re.IGNORECASE) for _, text in written(ROOT / name)), (name, word)


@pytest.mark.parametrize(
    "text", ["def hollow_base(): ...", "x = 'it goes on'", "# the optimiser", 'class TaskLedger:\n    """Doc."""']
)
def test_a_private_word_is_found_in_names_strings_and_comments(text: str, tmp_path: Path) -> None:
    file = tmp_path / "module.py"
    file.write_text(text)
    found = [pattern for _, part in written(file) for pattern in PATTERNS if pattern.search(part)]
    assert len(found) == 1
