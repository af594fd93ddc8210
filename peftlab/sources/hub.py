"""Downloads from the Hugging Face Hub; the local cache is tried first, without network access."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path


class Unreachable(Exception):
    """The Hub does not have the repository or cannot be reached. The message is one line."""


def snapshot(
    id: str,
    *,
    revision: str | None,
    patterns: Iterable[str],
    repo_type: str = "model",
    complete: Callable[[Path], bool] = lambda folder: True,
) -> Path:
    """Folder with a repository's files that match `patterns`: the cached one if it is `complete`, else downloaded.

    Raises Unreachable.
    """
    import huggingface_hub
    from huggingface_hub.errors import HFValidationError, HTTPError  # type: ignore[attr-defined]

    reason = ""
    for offline in (True, False):
        try:
            folder = Path(
                huggingface_hub.snapshot_download(
                    id, revision=revision, repo_type=repo_type, allow_patterns=list(patterns), local_files_only=offline
                )
            )
        except (HTTPError, HFValidationError, OSError) as error:  # a cache miss is an OSError too
            reason = str(error).splitlines()[0].removeprefix("Got: ") if str(error) else type(error).__name__
        else:
            if complete(folder):
                return folder
            # An interrupted download, or one of another program that needed only some files.
            reason = "the cached copy is incomplete"
    raise Unreachable(reason)


def cached(id: str, *, revision: str | None, file: str) -> Path | None:
    """Path of a repository's file in the local cache, or None. No network access."""
    import huggingface_hub
    from huggingface_hub.errors import HFValidationError

    try:
        path = huggingface_hub.try_to_load_from_cache(id, file, revision=revision)
    except HFValidationError:  # a path, which the Hub cannot have
        return None
    return Path(path) if isinstance(path, str) else None
