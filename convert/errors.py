"""The errors that reach a user: one sentence that says what is wrong, where, and what to do now."""


class TsconvertError(Exception):
    """Bad input or usage. The command line prints it without a traceback and exits with ``exit_code``."""

    exit_code = 2


class CheckFailedError(TsconvertError):
    """The work was done and a verification or threshold failed."""

    exit_code = 1
