"""Exceptions whose text is shown to the user without a traceback."""


class ToldError(Exception):
    """Base class of the exceptions that are shown to the user without a traceback.

    Attributes:
        reaches_all: whether every process raises the exception, so that only one process has to print it.
    """

    reaches_all = False


class UserError(ToldError):
    """An error that the user can correct; its text names the cause and the remedy."""


class StoppedError(ToldError):
    """A stage was asked to stop and has saved its progress; its text says what stopped it and where."""


def reason_of(error: Exception) -> str:
    """The type of an exception of another library and the first line of its text, for a message of one line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
