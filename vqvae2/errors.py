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
