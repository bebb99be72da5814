"""Data parallelism under torchrun: all processes have the same weights, and each has a share of the sequences.

Only sums (of gradients, counts, energies) cross between processes, so that all take the same decisions; process 0
writes. A process on its own is the first and only one here.
"""

import atexit
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import NoReturn, TypeVar

import torch
import torch.distributed as dist

Item = TypeVar("Item")
_alone = False


def rank() -> int:
    """This process's number, from 0."""
    return int(dist.get_rank()) if _together() else 0


def world() -> int:
    """The number of processes."""
    return int(dist.get_world_size()) if _together() else 1


def started() -> int:
    """The number of processes that torchrun started, this one among them, whether or not they have met."""
    return int(os.environ.get("WORLD_SIZE", "1"))


@contextmanager
def processes(device: str) -> Iterator[str]:
    """Join the processes that torchrun started, if it started this one.

    Args:
        device: `cpu` (gloo) or `cuda` (nccl; each process takes the device of its LOCAL_RANK).

    Yields:
        The device of this process.
    """
    if started() == 1 or _together():
        yield device
        return
    cuda = torch.device(device).type == "cuda"
    if cuda:
        device = f"cuda:{os.environ.get('LOCAL_RANK', '0')}"
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if cuda else "gloo")
    try:
        yield device
        dist.barrier()
    finally:
        dist.destroy_process_group()


def exit_process(code: int) -> NoReturn:
    """End one of several processes without tearing the interpreter down.

    torch's caches of sharded tensors keep the group past ``destroy_process_group``, and gloo's threads with it. A
    thread that frees a tensor during interpreter shutdown aborts the process, although its work is done
    (https://github.com/pytorch/pytorch/issues/190489). Functions registered with atexit still run.
    """
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with suppress(ValueError, OSError):
            stream.flush()
    os._exit(code)


def barrier() -> None:
    """Wait for all processes."""
    if _together():
        dist.barrier()


def share(count: int) -> slice:
    """This process's slice of ``count`` items; the slices differ by one item at most."""
    return slice(count * rank() // world(), count * (rank() + 1) // world())


def sum_(tensor: torch.Tensor) -> torch.Tensor:
    """``tensor``, summed over all processes in place."""
    if _together():
        dist.all_reduce(tensor)
    return tensor


def sums(*values: float) -> list[float]:
    """Each of ``values``, summed over all processes in double precision."""
    if not _together():
        return [float(value) for value in values]
    kind = torch.float64
    return list(sum_(torch.tensor(values, dtype=kind, device=_device())).tolist())


def extremes(low: float, high: float) -> tuple[float, float]:
    """The lowest ``low`` and the highest ``high`` of all processes."""
    if not _together():
        return low, high
    both = torch.tensor([-low, high], dtype=torch.float64, device=_device())
    dist.all_reduce(both, dist.ReduceOp.MAX)
    return -float(both[0]), float(both[1])


def before(count: int) -> int:
    """The sum of ``count`` over the processes before this one."""
    counts = [0] * world()
    counts[rank()] = count
    return int(sum(sums(*counts)[: rank()]))


def gather(tensor: torch.Tensor) -> torch.Tensor:
    """Concatenate the one-dimensional tensors of all processes, as float64."""
    offset, whole = before(len(tensor)), int(sums(len(tensor))[0])
    everything = torch.zeros(whole, dtype=torch.float64, device=_device())
    everything[offset : offset + len(tensor)] = tensor
    return sum_(everything).cpu()


def broadcast(item: Item) -> Item:
    """Broadcast process 0's ``item``."""
    box = [item]
    if _together():
        dist.broadcast_object_list(box, src=0)
    return box[0]


def broadcast_(tensor: torch.Tensor) -> None:
    """Broadcast process 0's ``tensor``, in place."""
    if _together():
        dist.broadcast(tensor, src=0)


@contextmanager
def alone() -> Iterator[None]:
    """Let this process work alone: what only one process does must not wait for the others."""
    global _alone
    before, _alone = _alone, True
    try:
        yield
    finally:
        _alone = before


def _together() -> bool:
    return bool(dist.is_available() and dist.is_initialized()) and not _alone


def _device() -> torch.device:
    cuda = _together() and dist.get_backend() == "nccl"
    return torch.device("cuda", torch.cuda.current_device()) if cuda else torch.device("cpu")
