"""The sum over a token's neurons, the same bits with any number of threads: leaves of a binary tree of fixed shape.

What is to be summed, listed neurons or all, is cut into LEAVES runs, which depend on its length only. A thread has
neighbouring leaves. It sums each by itself and adds two sums as soon as it has both halves of a node, so that with two
threads one sum each is left; what is left everywhere is added up in the same tree. Slow twin: tests/runner.
"""

from typing import Any

from .access import at, number
from .compiling import compiled
from .elementwise import share_of
from .parts import add_floats, clear
from .tables import LEAVES, PARTIAL, WHOLE, WIDTH

_UNIT = 8


@compiled
def first_leaf(thread: int, threads: int) -> Any:
    """The first leaf of a thread; that of the next thread ends its leaves."""
    return LEAVES * thread // threads


@compiled
def leaf_start(count: int, leaf: int) -> Any:
    """Where, of ``count`` numbers that are summed, a leaf begins; that of the next leaf ends it."""
    return share_of(count, leaf, LEAVES, _UNIT)


@compiled
def slot(m: int, thread: int, which: int) -> Any:
    """The address of one of a thread's sums."""
    return at(m, PARTIAL, thread) + 4 * number(m, WIDTH) * which


@compiled
def join_sums(m: int, thread: int, first: int, leaf: int, held: int) -> Any:
    """Add up the last of ``held`` sums as far as nodes are complete; returns how many are left.

    Args:
        first: the thread's first leaf.
        leaf: the one whose sum is the last.
    """
    size, end, width = 1, leaf + 1, number(m, WIDTH)
    while end % (2 * size) == 0 and end - 2 * size >= first:
        held -= 1
        add_floats(slot(m, thread, held), slot(m, thread, held - 1), width)
        size *= 2
    return held


@compiled
def add_whole(m: int, thread: int, threads: int, into: int) -> None:
    """into += the sum of all threads' sums. Every thread does it for itself."""
    width, held = number(m, WIDTH), 0
    for other in range(threads):
        start, end = first_leaf(other, threads), first_leaf(other + 1, threads)
        which = 0
        while start < end:
            size = 1
            while start % (2 * size) == 0 and start + 2 * size <= end:
                size *= 2
            target = at(m, WHOLE, thread) + 4 * width * held
            clear(target, width)
            add_floats(slot(m, other, which), target, width)
            held, which, start = held + 1, which + 1, start + size
            while start % (2 * size) == 0:
                held -= 1
                last = at(m, WHOLE, thread) + 4 * width * held
                add_floats(last, last - 4 * width, width)
                size *= 2
    add_floats(at(m, WHOLE, thread), into, width)
