"""Errors for users: one sentence that says what is wrong, where, and what to do now."""


class TsconvertError(Exception):
    """Bad input or usage. The command line prints it without a traceback and exits with ``exit_code``."""

    exit_code = 2


class CheckFailedError(TsconvertError):
    """The work was done and a verification or threshold failed."""

    exit_code = 1


def shown(value: object, most: int = 60) -> str:
    """A value from a file, for a message: quoted, and shortened where it is long.

    Example:
        >>> shown("abc"), shown("a" * 100, 10)
        ("'abc'", "'aaaaaa...")
    """
    quoted = repr(value[: most + 1] if isinstance(value, str | bytes | list) else value)
    return quoted if len(quoted) <= most else quoted[: most - 3] + "..."


def label(name: str, most: int = 120) -> str:
    """A name from a file, for a message: quoted and shortened if it is unprintable or long."""
    return name if name.isprintable() and len(name) <= most else shown(name, most)


def reason(error: BaseException) -> str:
    """A library's error, for a message: its first line, shortened."""
    first = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
    return printable(first if len(first) <= 200 else first[:197] + "...")


def printable(text: str) -> str:
    """``text`` without escape sequences and halves of characters, which names in files can hold."""
    return "\n".join(line if line.isprintable() else _spelled(line) for line in text.split("\n"))


def _spelled(line: str) -> str:
    return "".join(each if each.isprintable() or each == "\t" else ascii(each)[1:-1] for each in line)
