"""The GPUs of this machine, lent to the runs of a suite: so many to a run, none of them to two at once.

A process that was forked from one in which CUDA has started cannot use it. So the runner of a suite starts none, and
where there are GPUs it imports nothing that would: each run imports for itself.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

from peftlab.suites.claims import Claims

VARIABLE = "CUDA_VISIBLE_DEVICES"


def visible() -> list[str]:
    """By the names that the variable has for them; none on a machine without."""
    import torch

    count = torch.cuda.device_count()  # asked of the driver's own library, which starts no CUDA
    named = os.environ.get(VARIABLE)
    return (named.split(",") if named else [str(number) for number in range(count)])[:count]


@dataclass(frozen=True)
class Slot:
    """What a run is lent."""

    key: str  # of the claim
    environment: dict[str, str]


class Slots:
    """All that this machine has, claimed among its runners of the same suite."""

    def __init__(self, names: Sequence[str], each: int, claims: Claims) -> None:
        groups = [names[start : start + each] for start in range(0, len(names) - each + 1, each)]
        self._slots = [Slot(f"gpus {','.join(group)}", {VARIABLE: ",".join(group)}) for group in groups]
        self._claims = claims

    def __len__(self) -> int:
        return len(self._slots)

    def take(self) -> Slot | None:
        """One that no run has, this runner's or another's."""
        return next((slot for slot in self._slots if self._claims.take(slot.key, lambda: False) is not None), None)

    def give_back(self, slot: Slot) -> None:
        self._claims.forget(slot.key)
