"""Languages of a translation: the codes that a tokenizer puts around a text, and how a generation begins.

NLLB, M2M100, SeamlessM4T and mBART-50 put the code before a text: a generation is forced to begin with the target's.
mBART and PLBart put it after a text: it is then the token from which the decoder starts. Marian's models for several
target languages read the code as the first word of the source.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from peftlab.errors import UserError, nearest

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SOURCE, TARGET = "task.source_language", "task.target_language"


def language_codes(tokenizer: PreTrainedTokenizerBase) -> dict[str, int]:
    """Token id of each language code that the tokenizer puts around texts; empty if it puts none."""
    if not hasattr(tokenizer, "set_tgt_lang_special_tokens"):
        return {}
    ids = getattr(tokenizer, "lang_code_to_id", None)
    if ids is None:
        named = {str(token) for token in tokenizer.special_tokens_map.values() if not isinstance(token, list)}
        codes = [token for token in tokenizer.all_special_tokens if token not in named]
        ids = {code: tokenizer.convert_tokens_to_ids(code) for code in codes}
    return {code: number for code, number in ids.items() if number not in (None, tokenizer.unk_token_id)}


def set_languages(
    tokenizer: Any, source_language: str | None, target_language: str | None, *, prefix: str = ""
) -> None:
    """Let the tokenizer encode sources and targets as texts of these languages.

    Raises UserError if a language is missing, unknown or without effect. `prefix` is the text before every source.
    """
    codes = language_codes(tokenizer)
    languages = {SOURCE: source_language, TARGET: target_language}
    if not codes:
        _refuse_languages(tokenizer, languages, prefix)
        return
    missing = [key for key, language in languages.items() if language is None]
    if missing:
        raise UserError(
            f"{missing[0]}: not set, but {type(tokenizer).__name__} marks texts with one of {len(codes)} language "
            f"codes, e.g. {next(iter(codes))!r}; set {' and '.join(missing)}"
        )
    source, target = (_code(language, codes, key) for key, language in languages.items() if language is not None)
    if getattr(tokenizer, "legacy_behaviour", False):
        raise UserError(
            "model: its tokenizer puts language codes after a text, where its decoder does not read them; "
            'set "legacy_behaviour": false in its tokenizer_config.json'
        )
    tokenizer.tgt_lang = target
    tokenizer.src_lang = source  # last: its setter decides what the next call encodes
    tokenizer.init_kwargs |= {"src_lang": source, "tgt_lang": target}  # saved with the tokenizer


def generation_start(tokenizer: PreTrainedTokenizerBase, target_language: str | None) -> dict[str, int]:
    """Arguments of `generate` that start a text in the target language; none if the tokenizer has no codes."""
    codes = language_codes(tokenizer)
    if target_language is None or not codes:
        return {}
    token = codes[_code(target_language, codes, TARGET)]
    empty: list[int] = tokenizer(text_target="")["input_ids"]
    return {"decoder_start_token_id" if empty[-1] == token else "forced_bos_token_id": token}


def without_start(
    labels: list[list[int]], tokenizer: PreTrainedTokenizerBase, target_language: str | None
) -> list[list[int]]:
    """Labels without the decoder's start token, which SeamlessM4T's tokenizer puts before the language code."""
    start = [tokenizer.eos_token_id, *generation_start(tokenizer, target_language).values()]
    return [ids[1:] if len(start) > 1 and ids[:2] == start else ids for ids in labels]


def _refuse_languages(tokenizer: Any, languages: dict[str, str | None], prefix: str) -> None:
    """Raise UserError if a language is set for a tokenizer without codes, or a first word is missing that it reads."""
    words = getattr(tokenizer, "supported_language_codes", None)  # Marian: >>fra<<
    unread = next((key for key, language in languages.items() if language is not None), None)
    name = type(tokenizer).__name__
    if words:
        if unread is None and prefix.split(" ")[0] in words:
            return
        raise UserError(
            f"{unread or 'task.prefix'}: {name} reads the target language as the first word of a source, one of "
            f"{len(words)}; set task.prefix, e.g. {words[0] + ' '!r}" + (f", and remove {unread}" if unread else "")
        )
    if unread is not None:
        raise UserError(
            f"{unread}: {languages[unread]!r} has no effect, because the tokenizer has no language codes; remove it, "
            "and name the languages in task.prefix if the model reads them there, as T5 does: "
            '"translate English to German: "'
        )


def _code(language: str, codes: dict[str, int], key: str) -> str:
    """The tokenizer's spelling of a language code. Raises UserError if it has no such code."""
    for spelling in (language, f"__{language}__"):  # SeamlessM4T, PLBart
        if spelling in codes:
            return spelling
    similar = [code for code in codes if code.strip("_").lower().startswith(language.lower()[:2])]
    hint = nearest(language, codes) or (f"; similar: {', '.join(similar[:5])}" if similar else "")
    raise UserError(f"{key}: the tokenizer has no language code {language!r} among its {len(codes)}{hint}")
