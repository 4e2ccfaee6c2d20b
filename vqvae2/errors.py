"""Exceptions whose text is shown to the user without a traceback."""

import textwrap

LONGEST_REASON = 300  # characters of the text of another library's exception


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
    """The type of an exception of another library and the beginning of its text, as one line for a message."""
    text = textwrap.shorten(str(error), LONGEST_REASON, placeholder=" ...")
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
