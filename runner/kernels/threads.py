"""The threads that run a step together: started once, asleep between steps."""

import threading
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from ...common.errors import TsconvertError
from . import barrier
from .barrier import call_members, to_wake
from .memory import yield_address

Array = npt.NDArray[np.void]
Job = Callable[[int], Any]
_MOST_THREADS = 256


class Team:
    """``threads`` threads that run the same function; the calling one is number 0.

    Attributes:
        sync: the words that compiled code meets over (barrier.py).
    """

    def __init__(self, threads: int) -> None:
        if not 1 <= threads <= _MOST_THREADS:
            raise TsconvertError(f"threads is {threads}: it must be 1 to {_MOST_THREADS}")
        self.threads = threads
        self.sync = barrier.new_sync(threads, yield_address())
        self._members = [_Member(number, self.sync) for number in range(1, threads)]
        self._finalizer = weakref.finalize(self, _stop, self._members)

    def run(self, job: Job) -> None:
        """Call ``job(number)`` on every thread and return when all are done. What one raises is raised here."""
        self._rest()
        for member in self._members:
            member.start(job)
        errors: list[BaseException] = []
        try:
            job(0)
        except BaseException as error:
            self.sync[barrier.ABORT] = 1
            errors.append(error)
        for member in self._members:
            errors += self._wait(member)
        if errors:
            raise errors[0]

    def run_on(self, parameters: Array, function: Callable[[int, int], Any]) -> None:
        """Call compiled ``function(address of the record, number)`` on every thread, and return when number 0 is done.

        Its last act is that all meet; then members may `barrier.stay` for the next call, as long as nothing fails.
        """
        address = parameters.ctypes.data

        def job(number: int, _kept: Array = parameters) -> None:
            function(address, number)

        if self.sync[barrier.ABORT]:
            self._rest()
        if call_members(address):
            for number, member in enumerate(self._members, 1):
                if to_wake(self.sync, number):
                    if member.started:
                        self._wait(member)
                    member.start(job)
        try:
            job(0)
        except BaseException:
            self._rest()
            raise

    def _rest(self) -> None:
        """Send all members to sleep, and make ready for anything."""
        self.sync[barrier.ABORT] = 1
        interrupts = [each for member in self._members if member.started for each in self._wait(member)]
        barrier.reset(self.sync)
        if interrupts:
            raise interrupts[0]

    def _wait(self, member: "_Member") -> list[BaseException]:
        """What the member raised. Ctrl-C stops the step, but nobody leaves while a member is still in it."""
        interrupts: list[BaseException] = []
        while True:
            try:
                error = member.wait()
            except KeyboardInterrupt as interrupt:
                self.sync[barrier.ABORT] = 1
                interrupts.append(interrupt)
            else:
                return interrupts + ([error] if error else [])

    def close(self) -> None:
        """End the threads."""
        self._finalizer()


class _Member:
    def __init__(self, number: int, sync: Any) -> None:
        self.number, self.sync = number, sync
        self.job: Job | None = None
        self.error: BaseException | None = None
        self.started = False
        self.begin, self.end = threading.Semaphore(0), threading.Semaphore(0)
        self.thread = threading.Thread(target=self._serve, name=f"tsconvert-{number}", daemon=True)
        self.thread.start()

    def start(self, job: Job | None) -> None:
        self.job, self.started = job, job is not None
        self.begin.release()

    def wait(self) -> BaseException | None:
        self.end.acquire()
        self.started = False
        error, self.error = self.error, None
        return error

    def _serve(self) -> None:
        while True:
            self.begin.acquire()
            job, self.job = self.job, None
            if job is None:
                return
            try:
                job(self.number)
            except BaseException as error:
                self.sync[barrier.ABORT] = 1
                self.error = error
            del job
            self.end.release()


def _stop(members: list[_Member]) -> None:
    for member in members:
        member.start(None)
        if member.thread is not threading.current_thread():
            member.thread.join()
