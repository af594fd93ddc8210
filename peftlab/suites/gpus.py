"""The GPUs of this machine, assigned to the processes of a suite: so many per process, none to two at once.

A process that was forked from one in which CUDA is initialized cannot use it. So a runner initializes no CUDA, and on a
machine with GPUs it imports nothing that would: each process imports for itself.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

from peftlab.suites.claims import Claims

VARIABLE = "CUDA_VISIBLE_DEVICES"


def visible() -> list[str]:
    """The GPUs by their names in CUDA_VISIBLE_DEVICES; empty on a machine without GPUs."""
    import torch  # late: start-up time

    count = torch.cuda.device_count()  # by the driver's library, which does not initialize CUDA
    names = os.environ.get(VARIABLE)
    return (names.split(",") if names else [str(number) for number in range(count)])[:count]


@dataclass(frozen=True)
class Slot:
    """A resource that one process at a time may use."""

    key: str
    """Key of its claim."""
    environment: dict[str, str]
    """Environment variables of the process that has it."""


def gpu_slots(names: Sequence[str], each: int) -> list[Slot]:
    """Slots of `each` GPUs.

    >>> gpu_slots(["0", "1", "2"], 2)
    [Slot(key='gpus 0,1', environment={'CUDA_VISIBLE_DEVICES': '0,1'})]
    """
    groups = [",".join(names[start : start + each]) for start in range(0, len(names) - each + 1, each)]
    return [Slot(f"gpus {group}", {VARIABLE: group}) for group in groups]


class Slots:
    """Slots shared with the other runners of the same suite by claims."""

    def __init__(self, slots: Sequence[Slot], claims: Claims) -> None:
        self._slots, self._claims = slots, claims

    def __len__(self) -> int:
        return len(self._slots)

    def take(self) -> Slot | None:
        """Claim a free slot; None if all are claimed."""
        return next((slot for slot in self._slots if self._claims.take(slot.key, lambda: False) is not None), None)

    def give_back(self, slot: Slot) -> None:
        """Give up the claim of a slot."""
        self._claims.forget(slot.key)
