"""The one exception that is meant to be read by a user."""


class UserError(Exception):
    """Something the user can mend: its text names the thing and the remedy, and is shown without a traceback."""
