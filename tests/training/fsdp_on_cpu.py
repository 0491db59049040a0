"""Let accelerate shard on a CPU: it offers FSDP to accelerators only, though torch's fully_shard works with gloo too.

Nothing of ours is replaced: the state that accelerate keeps is set as it would be on GPUs, the rest is its own code.
"""

from __future__ import annotations

import os

import accelerate.accelerator
from accelerate.utils import DistributedType


def allow() -> None:
    """From now on an Accelerator made with an FSDP plugin shards, on a CPU too."""
    ordinary = accelerate.accelerator.AcceleratorState.__init__

    def init(self, *args, fsdp_plugin=None, **kwargs):
        ordinary(self, *args, fsdp_plugin=fsdp_plugin, **kwargs)
        if fsdp_plugin is not None:
            os.environ["ACCELERATE_USE_FSDP"] = "true"
            self.fsdp_plugin = fsdp_plugin
        if getattr(self, "fsdp_plugin", None) is not None:  # made anew, a state takes its type from the machine again
            self.distributed_type = DistributedType.FSDP

    accelerate.accelerator.AcceleratorState.__init__ = init
