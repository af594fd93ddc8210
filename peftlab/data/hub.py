"""A data set by its hub id: a local folder, then the registry package that carries it, then the hub.

A folder holds data files in the hub's layout, or what `Dataset.save_to_disk` has written.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from peftlab.component import ExpandedPath
from peftlab.data.data import SPLITS, Data, Split
from peftlab.data.examples import Row
from peftlab.data.readers.arrow import dataset_rows
from peftlab.data.registry import REGISTRY
from peftlab.errors import UserError, nearest
from peftlab.sources import assets, hub


@functools.lru_cache(maxsize=4)
def _of_registry(name: str, folder: Path) -> dict[str, list[Row]]:
    """Read once a process: a suite's runs are forked from one that has read it. Rows are never changed."""
    return {
        split: [dataclasses.replace(row, where=row.where.replace(f"{folder}/", f"{name}/")) for row in part]
        for split, part in REGISTRY[name](folder).items()
    }


class Hub(Data):
    """A hub id such as `eriktks/conll2003`; class numbers become class names."""

    kind: Literal["hub"] = "hub"
    id: ExpandedPath = Field(min_length=1)
    revision: str | None = None
    configuration: str | None = None  # the hub's "subset", e.g. "sst2" of GLUE
    splits: dict[Split, str] = Field(default={})  # the hub's name of a split, where it is another

    @property
    def local(self) -> bool:
        return Path(self.id).is_dir()

    def read(self) -> tuple[dict[str, list[Row]], str]:
        if Path(self.id).is_file():
            raise UserError(f"data: {self.id!r} is a file; write data: {{train: {self.id}}}")
        if not self.local and self.revision is None:
            asset = assets.find(self.id)
            if asset is not None and asset.id in REGISTRY:
                rows = _of_registry(asset.id, assets.fetch(asset))
                return {
                    split: list(part) for split, part in rows.items()
                }, f"{asset.id} ({asset.package} {asset.version})"
        return self._from_hub(), self.id if self.revision is None else f"{self.id}@{self.revision}"

    def _from_hub(self) -> dict[str, list[Row]]:
        import datasets
        from datasets.exceptions import DatasetsError

        datasets.disable_progress_bars()
        reason, offline = "", datasets.config.HF_HUB_OFFLINE
        if not self.local:
            try:  # one short question: `datasets` itself goes on asking for half a minute where there is no network
                hub.snapshot(self.id, revision=self.revision, patterns=["README.md"], repo_type="dataset")
            except hub.Unreachable as error:
                datasets.config.HF_HUB_OFFLINE = True  # what an earlier run fetched serves still
                reason = str(error)
        try:
            loaded = self._saved() or datasets.load_dataset(self.id, self.configuration, revision=self.revision)
        except (OSError, ValueError, RuntimeError, DatasetsError) as error:
            reason = reason or next(iter(str(error).splitlines()), type(error).__name__)
            known = "" if self.revision else f", nor a known asset{nearest(self.id, REGISTRY)}"
            raise UserError(
                f"data: {self.id!r} is not a folder here{known}, nor to be had from the hub: {reason}"
            ) from None
        finally:
            datasets.config.HF_HUB_OFFLINE = offline
        given = set(self.splits.values())  # to another split, and so not to the one of its own name too
        names = {split: self.splits.get(split, "" if split in given else split) for split in SPLITS}
        return {
            split: dataset_rows(loaded[name], f"{self.id} {name}") for split, name in names.items() if name in loaded
        }

    def _saved(self) -> Mapping[str, Any] | None:
        """The splits of a folder that `save_to_disk` has written; a single set is train."""
        import datasets

        if not any((Path(self.id) / name).is_file() for name in ("dataset_dict.json", "state.json")):
            return None
        saved = datasets.load_from_disk(self.id)
        return saved if isinstance(saved, datasets.DatasetDict) else {self.splits.get("train", "train"): saved}
