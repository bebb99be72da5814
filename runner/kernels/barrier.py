"""Where the threads of one step meet: a counter that all of them add to and spin on.

The counter only rises, so nothing is reset between meetings. A thread that waits long yields its core: on a busy
machine the one that is waited for may need it. A thread that dies sets the abort word, and nobody waits any more.

After a step the members, all threads but the first, stay for a while: to call one that spins takes less than a
microsecond, to wake one that sleeps a few hundred on a virtual machine.
"""

import numpy as np
import numpy.typing as npt

from .compiling import compiled
from .memory import atomic_add, atomic_load, atomic_replace, call_yield, load_i64, pause, store_i64
from .parameters import Parameters

# Words of the sync array; each stands in a cache line of its own.
_LINE = 8
ARRIVALS, ABORT, YIELD, FIRST_THREAD = 0, _LINE, 2 * _LINE, 3 * _LINE
# Behind each thread's word: twice how often it was called, and one more if it sleeps; how many calls it has answered;
# and whether it must be woken.
_CALLS, _ANSWERED, _WAKE = 1, 2, 3
_SPINS = 2000  # pauses before the core is given away, some 50 microseconds
_STAY = 6000  # pauses, or times that the core is given away, before a member sleeps


def new_sync(threads: int, yield_function: int) -> npt.NDArray[np.int64]:
    """The words that ``threads`` threads meet over. ``yield_function`` is `memory.yield_address()`."""
    sync = np.zeros(FIRST_THREAD + threads * _LINE, np.int64)
    sync[YIELD] = yield_function
    reset(sync)
    return sync


def reset(sync: npt.NDArray[np.int64]) -> None:
    """Make ready for a next step. No thread may be in the last one; all but the first sleep."""
    sync[ARRIVALS] = sync[ABORT] = 0
    sync[FIRST_THREAD:] = 0
    sync[FIRST_THREAD + _CALLS :: _LINE] = 1


@compiled
def meet(params: Parameters, thread: int) -> None:
    """Wait until all threads are here, or one has aborted."""
    threads, sync = params.threads, params.sync
    if threads == 1:
        return
    mine = FIRST_THREAD + thread * _LINE
    target = load_i64(sync, mine) + threads
    store_i64(sync, mine, target)
    arrivals, abort = sync + 8 * ARRIVALS, sync + 8 * ABORT
    atomic_add(arrivals, 1)
    spins = 0
    while atomic_load(arrivals) < target and atomic_load(abort) == 0:
        spins += 1
        if spins < _SPINS:
            pause()
        else:
            call_yield(load_i64(sync, YIELD))


@compiled
def aborted(params: Parameters) -> int:
    """Other than 0 when a thread has died or asked all to stop."""
    return atomic_load(params.sync + 8 * ABORT)


@compiled
def stay(params: Parameters, thread: int) -> int:
    """As a member that has answered a call, wait a while for the next; returns 1 if there is one, 0 to sleep."""
    mine = params.sync + 8 * (FIRST_THREAD + thread * _LINE)
    answered, calls = load_i64(mine, _ANSWERED) + 1, mine + 8 * _CALLS
    store_i64(mine, _ANSWERED, answered)
    spins = 0
    while spins < _STAY and atomic_load(calls) == 2 * answered and aborted(params) == 0:
        spins += 1
        if spins < _SPINS:
            pause()
        else:
            call_yield(load_i64(params.sync, YIELD))
    return 1 - atomic_replace(calls, 2 * answered, 2 * answered + 1)


@compiled
def call_members(params: Parameters) -> int:
    """Call all members; returns how many sleep, and must be woken (`to_wake`)."""
    asleep = 0
    for thread in range(1, params.threads):
        mine = params.sync + 8 * (FIRST_THREAD + thread * _LINE)
        if atomic_add(mine + 8 * _CALLS, 2) % 2 == 1:
            atomic_add(mine + 8 * _CALLS, -1)
            store_i64(mine, _WAKE, 1)
            asleep += 1
    return asleep


def to_wake(sync: npt.NDArray[np.int64], thread: int) -> bool:
    """Whether a member must be woken; asks once."""
    place = FIRST_THREAD + thread * _LINE + _WAKE
    wake, sync[place] = bool(sync[place]), 0
    return wake
