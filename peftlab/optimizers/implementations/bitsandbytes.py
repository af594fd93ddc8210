"""AdamW of bitsandbytes with a state that consists of tensors of its own, as torch's optimizers have it.

bitsandbytes' state dict nests them, counts steps in a Python number and repeats tables that all parameters share.
"""

from __future__ import annotations

from typing import Any

import torch
from bitsandbytes.optim.adamw import AdamW

TABLES = ("qmap1", "qmap2")
"""Values that 8 bits stand for: constants."""


class StorableAdamW(AdamW):
    """bitsandbytes' AdamW whose state dict holds one tensor per name."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)  # type: ignore[no-untyped-call]
        self._cpu_paged_warned = True  # the run says it

    def state_dict(self) -> dict[str, Any]:
        state = torch.optim.Optimizer.state_dict(self)
        return {
            **state,
            "state": {
                number: {
                    name: value if isinstance(value, torch.Tensor) else torch.tensor(value)
                    for name, value in values.items()
                    if name not in TABLES
                }
                for number, values in state["state"].items()
            },
        }

    def load_state_dict(self, state_dict: dict[str, Any], move_to_device: bool = True) -> None:
        """Load what `state_dict` returned. The state is allocated as a step does it, so that paged state stays so."""
        for group, loaded in zip(self.param_groups, state_dict["param_groups"], strict=True):
            group.update({name: value for name, value in loaded.items() if name != "params"})
        self.state.clear()
        places = [
            (group, parameter, number, position)
            for number, group in enumerate(self.param_groups)
            for position, parameter in enumerate(group["params"])
        ]
        for index, values in state_dict["state"].items():
            group, parameter, number, position = places[index]
            self.init_state(group, parameter, number, position)  # type: ignore[no-untyped-call]
            state = self.state[parameter]
            if state.keys() - TABLES != values.keys():
                raise ValueError(f"the optimizer's state has {', '.join(values)}, expected {', '.join(state)}")
            for name, value in values.items():
                if name == "step":
                    state[name] = int(value)
                else:
                    state[name].copy_(value)
