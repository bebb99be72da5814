"""`tsconvert` and `python -m tsconvert`: the command line, and an end by Ctrl-C even while it is being imported."""

import sys


def main() -> None:
    """Run the command line; Ctrl-C before it can say so itself is said here."""
    try:
        from .cli import main as command_line

        command_line()
    except KeyboardInterrupt:
        sys.stderr.write("interrupted\n")
        sys.exit(130)


if __name__ == "__main__":
    main()
