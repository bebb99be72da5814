"""FSDP on CPU processes (gloo): for trying a configuration before it goes to GPUs."""

import os

from accelerate.state import DistributedType, PartialState


def shard_on_cpu() -> None:
    """Let accelerate shard between CPU processes, if `accelerate launch` asks for FSDP.

    torch shards there (fully_shard over gloo); accelerate looks for FSDP only where it has found several devices, so it
    is told of some other kind than a GPU. Sums between processes go the same way for each kind.
    """
    if os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true":
        PartialState(cpu=True)
        PartialState._shared_state["distributed_type"] = DistributedType.MULTI_XPU
