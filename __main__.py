"""`tsconvert` and `python -m tsconvert`: the command line, and an end by Ctrl-C even while it is being imported."""

import _thread
import signal
import sys
import threading
from typing import Any

_AGAIN_S = 0.05


def main() -> None:
    """Run the command line; Ctrl-C before it can say so itself is said here."""
    try:
        _heed_interrupts()
        from .cli import main as command_line

        command_line()
    except KeyboardInterrupt:
        sys.stderr.write("interrupted\n")
        sys.exit(130)


def _heed_interrupts() -> None:
    """A Ctrl-C that falls into an object's `__del__`, whose exceptions Python drops, comes again a moment later."""
    others = sys.unraisablehook

    def drop(what: Any) -> None:
        if issubclass(what.exc_type, KeyboardInterrupt):
            timer = threading.Timer(_AGAIN_S, _interrupt)
            timer.daemon = True
            timer.start()
        else:
            others(what)

    sys.unraisablehook = drop


def _interrupt() -> None:
    main_thread = threading.main_thread().ident
    if hasattr(signal, "pthread_kill") and main_thread is not None:
        signal.pthread_kill(main_thread, signal.SIGINT)
    else:  # Windows
        _thread.interrupt_main()


if __name__ == "__main__":
    main()
