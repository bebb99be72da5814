"""Run a command and write what it used to a file descriptor: ``python -I -S measured_process.py FD COMMAND...``.

Linux counts into a child's largest resident memory (`ru_maxrss`, getrusage(2)) what its parent held when it was forked.
The parent of a stage is therefore this small process, and not the one that checks.
"""

import json
import os
import signal
import subprocess
import sys


def main() -> int:
    """Exit as the command did; by signal N: 128 + N, as a shell."""
    report, command = int(sys.argv[1]), sys.argv[2:]
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to the command as well, which says what it left
    process = subprocess.Popen(command, preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))
    _, status, usage = os.wait4(process.pid, 0)
    code = os.waitstatus_to_exitcode(status)
    process.returncode = code  # so that Popen does not wait again
    figures = {
        "cpu_s": round(usage.ru_utime + usage.ru_stime, 3),
        "peak_bytes": usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024),
    }
    with os.fdopen(report, "w") as file:
        json.dump(figures, file)
    return code if code >= 0 else 128 - code


if __name__ == "__main__":
    sys.exit(main())
