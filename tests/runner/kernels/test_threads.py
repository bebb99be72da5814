"""Threads that meet, agree, and survive each other's deaths."""

import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from tsconvert.common.errors import TsconvertError
from tsconvert.runner import kernels
from tsconvert.runner.kernels import step  # noqa: F401  imports every function
from tsconvert.runner.kernels.barrier import meet, stay
from tsconvert.runner.kernels.compiling import compiled, function_table
from tsconvert.runner.kernels.memory import load_i64, store_i64
from tsconvert.runner.kernels.parameters import Parameters, new_parameters
from tsconvert.runner.kernels.threads import Team


def relay(params, thread, threads, rounds, numbers, seen):
    """Every thread writes its round, all meet, every thread checks the others' words, all meet."""
    for turn in range(rounds):
        numbers[thread * 8] = turn
        meet(params, thread)
        for other in range(threads):
            seen[thread] += numbers[other * 8] == turn
        meet(params, thread)


def parameters_of(team):
    """The record of a team's threads."""
    return new_parameters(sync=team.sync.ctypes.data, threads=team.threads)


@pytest.mark.parametrize("threads", [1, 2, 3, 5])
def test_nobody_passes_before_all_are_there(threads):
    team, rounds = Team(threads), 50
    record = parameters_of(team)
    numbers, seen = np.full(threads * 8, -1), np.zeros(threads, np.int64)
    for _ in range(3):
        team.run(lambda thread: relay(record.ctypes.data, thread, threads, rounds, numbers, seen))
    assert seen.tolist() == [3 * rounds * threads] * threads
    team.close()


@pytest.mark.parametrize("victim", [0, 1, 2])
def test_a_dead_thread_does_not_hang_the_others(victim):
    team = Team(3)
    record = parameters_of(team)
    numbers, seen = np.zeros(24, np.int64), np.zeros(3, np.int64)

    def job(thread):
        if thread == victim:
            raise RuntimeError("dead")
        relay(record.ctypes.data, thread, 3, 1000, numbers, seen)

    with pytest.raises(RuntimeError, match="dead"):
        team.run(job)
    seen[:] = 0
    team.run(lambda thread: relay(record.ctypes.data, thread, 3, 10, numbers, seen))
    assert seen.tolist() == [30, 30, 30]
    team.close()


@compiled
def meetings(params: Parameters, thread: int) -> None:
    """Steps of three meetings, which each thread counts."""
    counts, again = params.token_ids, 1
    while again == 1:
        for _ in range(3):
            meet(params, thread)
            store_i64(counts, 8 * thread, load_i64(counts, 8 * thread) + 1)
        meet(params, thread)
        again = 0
        if thread > 0:
            again = stay(params, thread)


@pytest.mark.parametrize("threads", [1, 2, 3, 5])
def test_members_that_stay_or_sleep_miss_no_call(threads):
    team, counts, functions = Team(threads), np.zeros(8 * threads, np.int64), function_table()
    record = new_parameters(
        sync=team.sync.ctypes.data, threads=threads, token_ids=counts.ctypes.data, functions=functions.ctypes.data
    )
    for turn in range(2000):
        team.run_on(record, meetings)
        assert (counts[::8] == 3 * (turn + 1)).all()
        if turn % 500 == 250:  # they sleep, and other work is done in between
            team.run(lambda thread: meet(record.ctypes.data, thread))
    team.close()


def test_threads_end_with_their_team():
    team = Team(4)
    members = [member.thread for member in team._members]
    team.close()
    assert not any(thread.is_alive() for thread in members)
    team = Team(2)
    (member,) = team._members
    del team
    member.thread.join(5)
    assert member.thread not in threading.enumerate()


@pytest.mark.parametrize("threads", [0, -1, 257])
def test_a_senseless_number_of_threads(threads):
    with pytest.raises(TsconvertError, match=f"^threads is {threads}: it must be 1 to 256$"):
        Team(threads)


def test_the_runner_needs_neither_torch_nor_transformers():
    folder = Path(kernels.__file__).parents[1]
    modules = [path.relative_to(folder).with_suffix("").parts for path in folder.rglob("*.py")]
    code = "import sys\n" + "".join(f"import tsconvert.runner.{'.'.join(parts)}\n" for parts in modules)
    code += "print([name for name in ('torch', 'transformers') if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
