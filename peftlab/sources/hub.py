"""The model hub, asked only for what is not here already."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path


class Unreachable(Exception):
    """The hub does not have it, or cannot be asked; the reason in one line."""


def snapshot(
    id: str,
    *,
    revision: str | None,
    patterns: Iterable[str],
    repo_type: str = "model",
    complete: Callable[[Path], bool] = lambda folder: True,
) -> Path:
    """The folder of a repository's files that match `patterns`, `complete` or fetched. Raises Unreachable."""
    import huggingface_hub
    from huggingface_hub.errors import HFValidationError, HTTPError  # type: ignore[attr-defined]

    reason = ""
    for offline in (True, False):  # first without a word to the network
        try:
            folder = Path(
                huggingface_hub.snapshot_download(
                    id, revision=revision, repo_type=repo_type, allow_patterns=list(patterns), local_files_only=offline
                )
            )
        except (HTTPError, HFValidationError, OSError) as error:  # the library's "not in the cache" is an OSError
            reason = str(error).splitlines()[0].removeprefix("Got: ") if str(error) else type(error).__name__
        else:
            if complete(folder):
                return folder
            reason = (
                "its copy here is incomplete"  # of a download that broke off, or of another program that took a part
            )
    raise Unreachable(reason)


def cached(id: str, *, revision: str | None, file: str) -> Path | None:
    """A file of a repository if an earlier run fetched it; asks nobody."""
    import huggingface_hub

    found = huggingface_hub.try_to_load_from_cache(id, file, revision=revision)
    return Path(found) if isinstance(found, str) else None
