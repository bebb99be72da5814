"""Which rows a thread takes care of: one run each, in whole units."""

from typing import Any

from .compiling import inlined

UNIT = 32


@inlined
def share_of(rows: int, thread: int, threads: int, unit: int) -> Any:
    """The first row of a thread's run; that of the next thread ends it."""
    units = (rows + unit - 1) // unit
    return min(rows, unit * (units * thread // threads))


@inlined
def run_of(params: Any, rows: int, thread: int) -> Any:
    """The first and the end of the matrix rows that a thread takes care of."""
    return share_of(rows, thread, params.threads, UNIT), share_of(rows, thread + 1, params.threads, UNIT)


@inlined
def tokens_of(params: Any, thread: int) -> Any:
    """The first and the end of the buffers' rows that a thread takes care of.

    One token is normalised and prepared by every thread for itself, so that nobody waits; of a block each thread takes
    some tokens, and all meet.
    """
    if params.tokens == 1:
        return thread, thread + 1
    first, end = share_of(params.tokens, thread, params.threads, 1), share_of(params.tokens, thread + 1, params.threads, 1)
    return first, end
