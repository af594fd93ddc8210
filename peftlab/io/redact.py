"""Secrets never reach a file or a stream: what looks like one, or is one of the environment's, is taken out."""

from __future__ import annotations

import os
import re
from typing import TypeVar

REDACTED = "[redacted]"
SHORTEST = 8  # characters of a secret of the environment: a shorter one would be found in ordinary words

T = TypeVar("T")

# Names of environment variables whose values are secret.
_NAME = re.compile(r"(TOKEN|SECRET|PASSWORD|PASSWD|PASSPHRASE|CREDENTIAL|APIKEY|API_KEY|ACCESS_KEY|PRIVATE_KEY|_AUTH$)")
_FORMS = re.compile(
    r"""
      (?<![A-Za-z0-9])(?:
        hf_[A-Za-z0-9]{16,}                       # Hugging Face
      | gh[pousr]_[A-Za-z0-9]{16,} | github_pat_[A-Za-z0-9_]{16,}
      | glpat-[A-Za-z0-9_-]{16,}
      | sk-[A-Za-z0-9_-]{16,}                     # keys of model providers
      | (?:AKIA|ASIA)[A-Z0-9]{16}                 # AWS
      | AIza[A-Za-z0-9_-]{30,}                    # Google
      | xox[abpros]-[A-Za-z0-9-]{10,}             # Slack
      | eyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]*   # a JSON web token
      )
    | (?<=://)[^/\s:@]*:[^/\s@]+(?=@)             # https://user:password@host
    | (?<=://)[^/\s:@]{16,}(?=@)                  # https://token@host
    | (?:(?<=[?&]token=)|(?<=[?&]sig=)|(?<=[?&]key=)|(?<=[?&]access_token=)|(?<=[?&]X-Amz-Signature=))[^&\s"']{8,}
    | (?i:(?<=bearer\s)|(?<=basic\s))[A-Za-z0-9._~+/=-]{12,}
    | -----BEGIN[ A-Z]*PRIVATE\ KEY-----[^-]*(?:-----END[ A-Z]*PRIVATE\ KEY-----)?
    """,
    re.VERBOSE,
)


def redact(text: str) -> str:
    """
    >>> redact("401 for https://me:pass1234@host/x with hf_abcdefghijklmnopqrst")
    '401 for https://[redacted]@host/x with [redacted]'
    >>> redact("the base's files: 0123456789ab there")
    "the base's files: 0123456789ab there"
    """
    for value in _of_environment():
        text = text.replace(value, REDACTED)
    return _FORMS.sub(REDACTED, text)


def redacted(values: T) -> T:
    """The same JSON values, each text redacted."""
    if isinstance(values, str):
        return redact(values)  # type: ignore[return-value]
    if isinstance(values, dict):
        return {redact(key): redacted(value) for key, value in values.items()}  # type: ignore[return-value]
    if isinstance(values, list | tuple):
        return type(values)(redacted(value) for value in values)
    return values


def _of_environment() -> list[str]:
    """Longest first, so that none is left over behind a part of it."""
    found = {value for name, value in os.environ.items() if len(value) >= SHORTEST and _NAME.search(name.upper())}
    return sorted((value for value in found if value.upper() not in ("DISABLED", "REQUIRED")), key=len, reverse=True)
