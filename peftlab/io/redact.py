"""Removal of secrets from text: values of secret environment variables, and anything in the form of a token."""

from __future__ import annotations

import os
import re
from typing import TypeVar

REDACTED = "[redacted]"
MIN_LENGTH = 8
"""Length of the shortest value of an environment variable that is redacted. Shorter ones occur in ordinary words."""

T = TypeVar("T")

# Names of environment variables that hold secrets.
_NAME = re.compile(r"(TOKEN|SECRET|PASSWORD|PASSWD|PASSPHRASE|CREDENTIAL|APIKEY|API_KEY|ACCESS_KEY|PRIVATE_KEY|_AUTH$)")
_PATTERNS = re.compile(
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
    """Replace every secret in `text`.

    >>> redact("401 for https://me:pass1234@host/x with hf_abcdefghijklmnopqrst")
    '401 for https://[redacted]@host/x with [redacted]'
    >>> redact("the base's files: 0123456789ab there")
    "the base's files: 0123456789ab there"
    """
    for value in _environment_secrets():
        text = text.replace(value, REDACTED)
    return _PATTERNS.sub(REDACTED, text)


def redacted(values: T) -> T:
    """JSON values with every string redacted, keys included."""
    if isinstance(values, str):
        return redact(values)  # type: ignore[return-value]
    if isinstance(values, dict):
        return {redact(key): redacted(value) for key, value in values.items()}  # type: ignore[return-value]
    if isinstance(values, list | tuple):
        return type(values)(redacted(value) for value in values)
    return values


def _environment_secrets() -> list[str]:
    """Values of secret environment variables, longest first, so that no part of a longer one remains."""
    values = {value for name, value in os.environ.items() if len(value) >= MIN_LENGTH and _NAME.search(name.upper())}
    return sorted((value for value in values if value.upper() not in ("DISABLED", "REQUIRED")), key=len, reverse=True)
