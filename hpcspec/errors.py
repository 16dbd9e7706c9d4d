"""The one exception a user is meant to read: what was wrong, where, and what to do."""


class UserError(Exception):
    """A mistake the user can mend; the command line prints it in one line and exits with code 2."""
