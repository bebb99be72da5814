"""Which rows a thread takes care of: one run each, in whole units."""

from .compiling import compiled
from .parameters import Parameters

UNIT = 32


@compiled
def share_start(params: Parameters, rows: int, thread: int, threads: int, unit: int) -> int:  # noqa: ARG001
    """The first row of a thread's run; that of the next thread ends it."""
    units = (rows + unit - 1) // unit
    return min(rows, unit * (units * thread // threads))


@compiled
def run_start(params: Parameters, rows: int, thread: int) -> int:
    """The first of the matrix rows that a thread takes care of."""
    return share_start(params, rows, thread, params.threads, UNIT)


@compiled
def token_start(params: Parameters, thread: int) -> int:
    """The first of the buffers' rows that a thread takes care of.

    One token is normalised and prepared by every thread for itself, so that nobody waits; of a block each thread takes
    some tokens, and all meet.
    """
    return thread if params.tokens == 1 else share_start(params, params.tokens, thread, params.threads, 1)
