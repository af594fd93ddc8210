"""What several devices hold of one model, and where they meet: shares (FSDP2, ZeRO), layers spread out, the update."""

from typing import Literal

DeviceMap = Literal["auto", "balanced", "balanced_low_0", "sequential"]
"""How transformers assigns layers to the GPUs of one process."""
