"""A secret in the environment, the recipe, an address or an error reaches no file and no stream."""

from __future__ import annotations

from pathlib import Path

import pytest

from peftlab.io.redact import redact
from tests.faults.conftest import KILLED, Lab, steps

BY_FORM = {
    "Hugging Face": "hf_CanaryCanaryCanary0123456789abcdef",
    "GitHub": "ghp_CanaryCanaryCanary0123456789abcdef",
    "GitHub, fine": "github_pat_CanaryCanaryCanary_0123456789",
    "GitLab": "glpat-CanaryCanary-0123456789",
    "OpenAI": "sk-proj-CanaryCanaryCanary0123456789",
    "AWS": "AKIACANARYCANARY0123",
    "Google": "AIzaCanaryCanaryCanaryCanaryCanary01234",
    "Slack": "xoxb-1234567890-CanaryCanary",
    "JSON web token": "eyJjYW5hcnkiOiIx.eyJjYW5hcnkiOiIy.Canary0123",
}
BY_NAME = {
    "HF_TOKEN": "canary-of-the-hub-0001",
    "AWS_SECRET_ACCESS_KEY": "canary/of+the/cloud0002",
    "WANDB_API_KEY": "canary0of0the0board0003",
    "MY_DATABASE_PASSWORD": "canary of the base 0004",
    "SOME_CREDENTIALS": "canary:of:the:rest:0005",
}
BY_PLACE = {
    "user and password": ("https://me:canaryinaurl01@host.example/x", "canaryinaurl01"),
    "token as user": ("https://canarytokeninaurl02@host.example/x", "canarytokeninaurl02"),
    "query": ("https://host.example/x?a=1&token=canaryinquery03", "canaryinquery03"),
    "signature": ("https://host.example/x?X-Amz-Signature=canarysignature04&b=2", "canarysignature04"),
    "header": ("authorization: Bearer canaryinaheader05", "canaryinaheader05"),
    "private key": ("-----BEGIN RSA PRIVATE KEY-----\ncanary06\n-----END RSA PRIVATE KEY-----", "canary06"),
}
ALL = [*BY_FORM.values(), *BY_NAME.values(), *(secret for _, secret in BY_PLACE.values())]
TEXT = "; ".join([*BY_FORM.values(), *BY_NAME.values(), *(text.replace("\n", " ") for text, _ in BY_PLACE.values())])


def leaked(lab: Lab, output: Path, *streams: str) -> list[str]:
    """Canaries that occur in a file below the output or in one of the streams."""
    content = [text.encode() for text in streams]
    content += [path.read_bytes() for path in output.rglob("*") if path.is_file()]
    return [secret for secret in ALL if any(secret.encode() in part for part in content)]


def test_there_are_twenty_canaries() -> None:
    assert len(set(ALL)) == 20


@pytest.mark.parametrize("text", BY_FORM.values(), ids=BY_FORM)
def test_a_secret_is_recognized_by_its_form(text: str) -> None:
    assert redact(f"before {text} after") == "before [redacted] after"


@pytest.mark.parametrize(("text", "secret"), BY_PLACE.values(), ids=BY_PLACE)
def test_a_secret_is_recognized_by_its_context(text: str, secret: str) -> None:
    assert secret not in redact(text)


def test_ordinary_text_is_not_redacted() -> None:
    text = (
        "the base's files: 4f0c9ae1b2d3 there; task sk-learn; hf_home; data rows.jsonl:12; lr 2e-05 https://a.b/c?d=e"
    )
    assert redact(text) == text


def test_no_canary_reaches_a_file_or_a_stream_of_a_run(lab: Lab, output: Path) -> None:
    words = [*lab.words(output, f"description='{TEXT}'"), "--checkpoint-every", "1", "--resume"]
    killed = lab.server.run(*words, faults=[["kill_at_step", 5]], **BY_NAME)
    assert killed.code == KILLED, killed.err
    assert steps(output)
    assert leaked(lab, output, killed.out, killed.err) == []
    done = lab.server.run(*words, **BY_NAME)
    assert done.code == 0, done.err
    assert "[redacted]" in next(output.glob("tiny/*/result.json")).read_text()
    assert leaked(lab, output, done.out, done.err) == []


@pytest.mark.parametrize("kind", ["RuntimeError", "UserError"])
def test_no_canary_comes_out_of_an_error(kind: str, lab: Lab, output: Path) -> None:
    done = lab.server.run(*lab.words(output), faults=[["fail_with", kind, TEXT]], **BY_NAME)
    assert done.code == (1 if kind == "RuntimeError" else 2)
    assert "[redacted]" in done.err
    assert leaked(lab, output, done.out, done.err) == []


def test_no_canary_comes_out_of_a_refused_recipe(lab: Lab, output: Path) -> None:
    wrong = lab.server.run("run", "tiny.yaml", "--set", f"method.kind={BY_FORM['OpenAI']}", **BY_NAME)
    address = lab.server.run("run", "tiny.yaml", "--set", f"model={BY_PLACE['user and password'][0]}", **BY_NAME)
    assert (wrong.code, address.code) == (2, 2)
    assert leaked(lab, output, wrong.err, address.err, wrong.out, address.out) == []
