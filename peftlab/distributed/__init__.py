"""Training over several devices: FSDP2, DeepSpeed ZeRO, layers dispatched over GPUs, and the optimizer step of each."""

from typing import Literal

DeviceMap = Literal["auto", "balanced", "balanced_low_0", "sequential"]
"""Strategy by which transformers assigns layers to the GPUs of one process."""
