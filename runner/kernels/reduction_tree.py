"""The sum over a token's neurons, the same bits with any number of threads: leaves of a binary tree of fixed shape.

What is to be summed, listed neurons or all, is cut into LEAVES runs, which depend on its length only. A thread has
neighbouring leaves. It sums each by itself and adds two sums as soon as it has both halves of a node, so that with two
threads one sum each is left; what is left everywhere is added up in the same tree. Slow twin: tests/runner.
"""

from .barrier import meet
from .compiling import compiled
from .parameters import LEAVES, Parameters, row_at
from .residual import add_floats, add_row, clear
from .work_shares import share_start

_UNIT = 8


@compiled
def first_leaf(params: Parameters, thread: int) -> int:
    """The first leaf of a thread; that of the next thread ends its leaves."""
    return LEAVES * thread // params.threads


@compiled
def leaf_start(params: Parameters, count: int, leaf: int) -> int:
    """Where, of ``count`` numbers that are summed, a leaf begins; that of the next leaf ends it."""
    return share_start(params, count, leaf, LEAVES, _UNIT)


@compiled
def sum_at(params: Parameters, thread: int, which: int) -> int:
    """The address of one of a thread's sums."""
    return row_at(params.partial, thread) + 4 * params.width * which


@compiled
def join_sums(params: Parameters, thread: int, leaf: int, held: int) -> int:
    """Add up the last of ``held`` sums, that of ``leaf``, as far as nodes are complete; returns how many are left."""
    first, size, end = first_leaf(params, thread), 1, leaf + 1
    while end % (2 * size) == 0 and end - 2 * size >= first:
        held -= 1
        add_floats(params, sum_at(params, thread, held), sum_at(params, thread, held - 1), params.width)
        size *= 2
    return held


@compiled
def join_all(params: Parameters, thread: int) -> None:
    """The sum of all threads' sums, into the thread's row of `whole`. Every thread does it for itself."""
    width, held, whole = params.width, 0, row_at(params.whole, thread)
    for other in range(params.threads):
        start, end = first_leaf(params, other), first_leaf(params, other + 1)
        which = 0
        while start < end:
            size = 1
            while start % (2 * size) == 0 and start + 2 * size <= end:
                size *= 2
            target = whole + 4 * width * held
            clear(params, target, width)
            add_floats(params, sum_at(params, other, which), target, width)
            held, which, start = held + 1, which + 1, start + size
            while start % (2 * size) == 0:
                held -= 1
                last = whole + 4 * width * held
                add_floats(params, last, last - 4 * width, width)
                size *= 2


@compiled
def add_sums(params: Parameters, thread: int, bias: int, weight: int) -> None:
    """x += all threads' sums and a bias, if there is one, after a norm with ``weight`` if there is one."""
    meet(params, thread)
    whole = row_at(params.whole, thread)
    join_all(params, thread)
    if bias:
        add_floats(params, bias, whole, params.width)
    add_row(params, whole, thread, weight)
