"""`python fsdp_on_cpu.py relufy ...`: tsconvert, whose training FSDP shards between CPU processes (gloo).

torch shards there (fully_shard over gloo); accelerate looks for FSDP only where it has found several devices, so it is
told of some other kind than a GPU. Sums between processes go the same way for each kind.
"""

import os

from accelerate.state import DistributedType, PartialState

from tsconvert.__main__ import main
from tsconvert.convert.full.trainer import RecoveryTrainer

create = RecoveryTrainer.create_accelerator_and_postprocess


def sharded(trainer: RecoveryTrainer) -> None:
    if os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true":
        PartialState(cpu=True)
        PartialState._shared_state["distributed_type"] = DistributedType.MULTI_XPU
    create(trainer)


if __name__ == "__main__":
    RecoveryTrainer.create_accelerator_and_postprocess = sharded
    main()
