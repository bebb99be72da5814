"""Which rows a thread takes care of: one run each, in whole units.

Runs have one size at first. Cores have not one speed: a laptop's are of two kinds, a virtual machine's have neighbours.
So after each step some rows go from the threads that the others waited for to those that waited. Whose rows they are
changes no bit.
"""

import numpy as np
import numpy.typing as npt

from .compiling import compiled
from .memory import load_i64
from .parameters import Parameters

UNIT = 32
WHOLE = 1 << 16  # of all rows, in the unit of edges
_GAIN = 1 / 64  # of a thread's share, that it gains or loses after a step at most
_LEAST = 1 / 8  # of an even share, that it keeps
_FEW = 100  # times, on average, that a thread looked whether all were there: a step to learn nothing from


class Shares:
    """The threads' shares of the rows of all matrices.

    Attributes:
        edges: [N + 1] int64, where each thread's share begins and the next one's, in 1 / WHOLE.
    """

    def __init__(self, threads: int) -> None:
        self._parts_N = np.full(threads, 1 / threads)
        self._seen_N = np.zeros(threads, np.int64)
        self.edges = np.zeros(threads + 1, np.int64)
        self._cut()

    def follow(self, waited_N: npt.NDArray[np.int64]) -> None:
        """Move them, after a step and before the next, by how much each thread has waited in all (barrier.py)."""
        step_N, self._seen_N = waited_N - self._seen_N, waited_N.copy()
        mean = float(step_N.mean())
        if mean < _FEW or step_N.min() < 0:
            return
        self._parts_N *= 1 + _GAIN * np.clip(step_N / mean - 1, -1, 1)
        self._parts_N = np.maximum(self._parts_N, _LEAST / len(step_N))
        self._parts_N /= self._parts_N.sum()
        self._cut()

    def _cut(self) -> None:
        self.edges[1:] = np.ceil(np.cumsum(self._parts_N) * WHOLE - 1e-6)
        self.edges[-1] = WHOLE


@compiled
def share_start(params: Parameters, rows: int, thread: int, threads: int, unit: int) -> int:  # noqa: ARG001
    """The first row of a thread's run; that of the next thread ends it."""
    units = (rows + unit - 1) // unit
    return min(rows, unit * (units * thread // threads))


@compiled
def run_start(params: Parameters, rows: int, thread: int) -> int:
    """The first of the matrix rows that a thread takes care of."""
    units = (rows + UNIT - 1) // UNIT
    return min(rows, UNIT * (units * load_i64(params.edges, thread) // WHOLE))


@compiled
def token_start(params: Parameters, thread: int) -> int:
    """The first of the buffers' rows that a thread takes care of.

    One token is normalised and prepared by every thread for itself, so that nobody waits; of a block each thread takes
    some tokens, and all meet.
    """
    return thread if params.tokens == 1 else share_start(params, params.tokens, thread, params.threads, 1)
