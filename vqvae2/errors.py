"""The exceptions that are meant to be read by a user; both are shown without a traceback."""


class UserError(Exception):
    """Something the user can mend: its text names the thing and the remedy."""


class StoppedError(Exception):
    """A stage was asked to stop and has saved what it did: its text says by what and where."""
