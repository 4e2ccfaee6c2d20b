"""The exceptions that are meant to be read by a user; both are shown without a traceback."""


class ToldError(Exception):
    """What a user is told instead of a traceback; `reaches_all`: every process raises it, and one has to print it."""

    reaches_all = False


class UserError(ToldError):
    """Something the user can mend: its text names the thing and the remedy."""


class StoppedError(ToldError):
    """A stage was asked to stop and has saved what it did: its text says by what and where."""
