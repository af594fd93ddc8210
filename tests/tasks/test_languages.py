"""Languages of a translation: tokenizers of the classes that have codes, refusals, and a tuned NLLB of two layers."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from transformers import M2M100Config, M2M100ForConditionalGeneration, MBart50Tokenizer, MBartTokenizer, NllbTokenizer
from transformers.models.mbart.tokenization_mbart import FAIRSEQ_LANGUAGE_CODES

from peftlab.data.examples import Row
from peftlab.errors import UserError
from peftlab.loading.model import load_tokenizer
from peftlab.models.byte_tokenizer import byte_tokenizer
from peftlab.models.model import ModelFiles
from peftlab.recipe import load_recipe
from peftlab.runs import artifact
from peftlab.runs.inference import answers, merge, rows_from_lines
from peftlab.runs.run import run
from peftlab.tasks.question_answering import QuestionAnswering
from peftlab.tasks.seq2seq import Seq2Seq

LETTERS = list("abcdefghijklmnopqrstuvwxyz")
UNIGRAMS = [("▁", -2.0), *((letter, -3.0) for letter in LETTERS)]
PAIRS = [("the dog", "der hund"), ("a cat", "eine katze"), ("rain", "regen")]


def nllb() -> Any:
    return NllbTokenizer(vocab={token: n for n, token in enumerate(["<s>", "<pad>", "</s>", "<unk>", "▁", *LETTERS])})


def mbart() -> Any:
    special = [(token, 0.0) for token in ("<s>", "<pad>", "</s>", "<unk>")]
    codes = [(code, 0.0) for code in FAIRSEQ_LANGUAGE_CODES]
    return MBartTokenizer(vocab=[*special, *UNIGRAMS, *codes, ("<mask>", 0.0)])


def mbart50() -> Any:
    return MBart50Tokenizer(vocab=[*((token, 0.0) for token in ("<unk>", "<s>", "</s>")), *UNIGRAMS])


def seamless() -> Any:
    vocabulary = {token: n for n, token in enumerate(["<pad>", "<unk>", "<s>", "</s>", "▁", *LETTERS])}
    codes = ["__eng__", "__deu__"]
    return transformers.SeamlessM4TTokenizer(vocab=vocabulary, additional_special_tokens=codes)


CODES = [
    (nllb, "eng_Latn", "deu_Latn"),
    (mbart50, "en_XX", "de_DE"),
    (mbart, "en_XX", "de_DE"),
    (seamless, "__eng__", "__deu__"),
]


def tokens(tokenizer: Any, ids: list[int]) -> str:
    return " ".join(tokenizer.convert_ids_to_tokens(ids))


@pytest.mark.parametrize(("make", "source", "target"), CODES)
def test_texts_are_encoded_as_the_tokenizers_class_does_for_these_languages(
    make: Any, source: str, target: str, tmp_path: Path
) -> None:
    own = make()
    expected = own._build_translation_inputs("ab", return_tensors=None, src_lang=source, tgt_lang=target)
    own.tgt_lang = target
    label = own(text_target="cd")["input_ids"]
    make().save_pretrained(tmp_path)
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path)
    task = Seq2Seq(source_language=source.strip("_"), target_language=target.strip("_"))
    task.prepare_tokenizer(tokenizer)
    (example,) = task.encode([Row("here:1", {"source": "ab", "target": "cd"})], tokenizer, 16).examples
    assert example.features["input_ids"] == expected["input_ids"]
    code = expected["forced_bos_token_id"]
    assert example.features["labels"] == label[label[:2] == [tokenizer.eos_token_id, code] :]
    if make is mbart:  # the code ends a target: the decoder starts with it
        assert label[-1] == code
        assert task.generation_settings(tokenizer) == {"decoder_start_token_id": code}
    else:
        assert example.features["labels"][0] == code
        assert task.generation_settings(tokenizer) == {"forced_bos_token_id": code}


@pytest.mark.parametrize(("make", "source", "target"), CODES)
def test_a_saved_tokenizer_keeps_the_languages(make: Any, source: str, target: str, tmp_path: Path) -> None:
    tokenizer = make()
    Seq2Seq(source_language=source, target_language=target).prepare_tokenizer(tokenizer)
    expected = (tokenizer("ab")["input_ids"], tokenizer(text_target="ab")["input_ids"])
    tokenizer.save_pretrained(tmp_path)
    saved = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert (saved.src_lang, saved.tgt_lang) == (source, target)
    assert (saved("ab")["input_ids"], saved(text_target="ab")["input_ids"]) == expected


T5 = byte_tokenizer(transformers.T5Config())


@pytest.mark.parametrize(
    ("make", "settings", "says"),
    [
        (nllb, {}, "task.source_language: not set, but NllbTokenizer marks texts with one of 202 language codes"),
        (nllb, {}, "; set task.source_language and task.target_language"),
        (nllb, {"source_language": "eng_Latn"}, "task.target_language: not set, but NllbTokenizer marks"),
        (
            nllb,
            {"source_language": "eng_Latn", "target_language": "deu_Lat"},
            "task.target_language: the tokenizer has no language code 'deu_Lat' among its 202 "
            "(did you mean 'deu_Latn'?)",
        ),
        (
            mbart50,
            {"source_language": "en", "target_language": "de_DE"},
            "task.source_language: the tokenizer has no language code 'en' among its 52; similar: en_XX",
        ),
        (
            lambda: T5,
            {"source_language": "en", "target_language": "de"},
            "task.source_language: 'en' has no effect, because the tokenizer has no language codes; remove "
            'it, and name the languages in task.prefix if the model reads them there, as T5 does: "translate English '
            'to German: "',
        ),
    ],
)
def test_a_language_that_is_missing_unknown_or_without_effect_is_refused(
    make: Any, settings: dict[str, str], says: str
) -> None:
    with pytest.raises(UserError) as caught:
        Seq2Seq(**settings).prepare_tokenizer(make())
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_tokenizer_that_puts_codes_after_a_text_for_a_decoder_that_starts_otherwise_is_refused() -> None:
    legacy = NllbTokenizer(vocab={"<s>": 0, "<pad>": 1, "</s>": 2, "<unk>": 3}, legacy_behaviour=True)
    with pytest.raises(UserError, match='set "legacy_behaviour": false in its'):
        Seq2Seq(source_language="eng_Latn", target_language="deu_Latn").prepare_tokenizer(legacy)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An NLLB of two layers with random weights."""
    folder = tmp_path_factory.mktemp("nllb")
    tokenizer = nllb()
    sizes = {"d_model": 64, "encoder_ffn_dim": 128, "decoder_ffn_dim": 128, "max_position_embeddings": 64}
    heads = {f"{part}_{what}": 2 for part in ("encoder", "decoder") for what in ("layers", "attention_heads")}
    torch.manual_seed(0)
    M2M100ForConditionalGeneration(
        M2M100Config(vocab_size=len(tokenizer), init_std=0.2, **sizes, **heads)
    ).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def test_a_generated_text_starts_in_the_target_language_and_does_not_contain_its_code(base: Path) -> None:
    model = M2M100ForConditionalGeneration.from_pretrained(base, tie_word_embeddings=False)
    torch.manual_seed(0)
    model.lm_head.weight = torch.nn.Parameter(torch.randn(model.lm_head.weight.shape))  # tied it would repeat the code
    letters = nllb().convert_tokens_to_ids(LETTERS)
    model.lm_head.weight.data[[n for n in range(len(nllb())) if n not in letters]] = 0  # so that it writes letters
    texts = {}
    for language in ("deu_Latn", "fra_Latn"):
        tokenizer = nllb()
        task = Seq2Seq(source_language="eng_Latn", target_language=language, max_new_tokens=8)
        task.prepare_tokenizer(tokenizer)
        examples = task.encode([Row("here:1", {"source": "the dog"})], tokenizer, 32).examples
        batch = task.collate(examples, tokenizer.pad_token_id)
        code = tokenizer.convert_tokens_to_ids(language)
        expected = model.generate(batch["input_ids"], forced_bos_token_id=code, max_new_tokens=8)
        assert expected[0, 1] == code
        (texts[language],) = task.predict(model, batch, tokenizer)
        assert texts[language] == tokenizer.decode(expected[0], skip_special_tokens=True)
        assert language not in texts[language]
    assert texts["deu_Latn"] != texts["fra_Latn"]  # else the start would have no effect here


RECIPE = """\
model: {model}
task: {{kind: seq2seq, max_new_tokens: 16, source_language: eng_Latn, target_language: deu_Latn}}
data: {{train: {data}, validation: {data}, test: {data}}}
method: {{kind: lora, rank: 8}}
training: {{steps: 80, evaluate_every: 80, batch_examples: 3, learning_rate: 1e-2, precision: float32}}
"""


@pytest.fixture(scope="module")
def finished(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    (folder / "mine.jsonl").write_text(
        "".join(json.dumps({"source": source, "target": target}) + "\n" for source, target in PAIRS)
    )
    (folder / "mine.yaml").write_text(RECIPE.format(model=base, data=folder / "mine.jsonl"))
    run(load_recipe(folder / "mine.yaml"), folder / "out")
    return folder / "out"


@pytest.fixture(scope="module")
def merged(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("merged") / "model"
    merge(finished, folder)
    return folder


def predictions(finished: Path) -> list[str]:
    records = [json.loads(line) for line in (finished / "predictions.jsonl").read_text().splitlines()]
    return [record["predicted"] for record in records if record["split"] == "test"]


@pytest.mark.slow
def test_a_tuned_nllb_translates_and_answers_in_the_languages_of_its_recipe(finished: Path) -> None:
    assert predictions(finished) == [target for _, target in PAIRS]
    rows = [source for source, _ in PAIRS]
    outputs = list(answers(finished, lambda task: rows_from_lines(task, rows, "text")))
    assert [answer["text"] for answer in outputs] == predictions(finished)


@pytest.mark.slow
def test_a_reloaded_tokenizer_encodes_in_the_languages_of_the_recipe(finished: Path) -> None:
    tuned = artifact.load(finished, device=torch.device("cpu"))
    assert tokens(tuned.tokenizer, tuned.tokenizer("a")["input_ids"]) == "eng_Latn ▁ a </s>"
    assert tokens(tuned.tokenizer, tuned.tokenizer(text_target="a")["input_ids"]) == "deu_Latn ▁ a </s>"
    assert tuned.card.task.generation_settings(tuned.tokenizer) == {
        "forced_bos_token_id": tuned.tokenizer.convert_tokens_to_ids("deu_Latn")
    }


@pytest.mark.slow
def test_a_merged_model_generates_in_the_target_language_without_peftlab(finished: Path, merged: Path) -> None:
    model = M2M100ForConditionalGeneration.from_pretrained(merged)
    tokenizer = transformers.AutoTokenizer.from_pretrained(merged)
    inputs = tokenizer([source for source, _ in PAIRS], return_tensors="pt", padding=True)
    ids = model.generate(**inputs, max_new_tokens=16)
    assert tokens(tokenizer, ids[0, :2].tolist()) == "</s> deu_Latn"
    assert [text.strip() for text in tokenizer.batch_decode(ids, skip_special_tokens=True)] == predictions(finished)


@pytest.mark.slow
def test_a_layer_is_left_out_in_no_step_and_published_as_before(finished: Path, base: Path, merged: Path) -> None:
    tuned = artifact.load(finished, device=torch.device("cpu"))
    assert (tuned.base.model.config.encoder_layerdrop, tuned.base.model.config.decoder_layerdrop) == (0.0, 0.0)
    published = [json.loads((folder / "config.json").read_text()) for folder in (base, merged)]
    assert published[0]["encoder_layerdrop"] == published[1]["encoder_layerdrop"] == 0.05


def test_the_base_of_a_recipe_without_languages_is_refused_before_its_weights_are_read(base: Path) -> None:
    files = ModelFiles(folder=base, source="my nllb", fingerprint="")
    with pytest.raises(UserError, match=r"task\.source_language: not set"):
        load_tokenizer(files, Seq2Seq())


def test_m2m100_is_encoded_by_its_slow_tokenizer_which_no_task_with_token_offsets_takes(tmp_path: Path) -> None:
    sentencepiece = pytest.importorskip("sentencepiece")
    text = [" ".join(pair) for pair in PAIRS]
    sizes = {
        "vocab_size": 22,
        "minloglevel": 2,
        "model_type": "unigram",
        "bos_id": 0,
        "pad_id": 1,
        "eos_id": 2,
        "unk_id": 3,
    }
    model = str(tmp_path / "sentencepiece")
    sentencepiece.SentencePieceTrainer.train(sentence_iterator=iter(text), model_prefix=model, **sizes)
    pieces = [line.split("\t")[0] for line in Path(f"{model}.vocab").read_text().splitlines()]
    (tmp_path / "vocab.json").write_text(json.dumps({piece: number for number, piece in enumerate(pieces)}))
    M2M100Config().save_pretrained(tmp_path)
    own = transformers.M2M100Tokenizer(str(tmp_path / "vocab.json"), f"{model}.model")
    own.save_pretrained(tmp_path)
    expected = own._build_translation_inputs(["the dog"], src_lang="en", tgt_lang="de")
    task = Seq2Seq(source_language="en", target_language="de")
    tokenizer = load_tokenizer(ModelFiles(folder=tmp_path, source="my m2m100", fingerprint=""), task)
    (example,) = task.encode([Row("here:1", {"source": "the dog", "target": "der hund"})], tokenizer, 32).examples
    assert example.features["input_ids"] == expected["input_ids"][0]
    assert task.generation_settings(tokenizer) == {"forced_bos_token_id": expected["forced_bos_token_id"]}
    assert tokens(tokenizer, example.features["labels"]).startswith("__de__ ")
    with pytest.raises(UserError, match="has no fast tokenizer"):
        load_tokenizer(ModelFiles(folder=tmp_path, source="my m2m100", fingerprint=""), QuestionAnswering())
    with pytest.raises(UserError, match="no language code 'deu' among its 100"):
        Seq2Seq(source_language="en", target_language="deu").prepare_tokenizer(tokenizer)
