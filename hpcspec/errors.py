"""The exceptions that are for people: what was wrong, where, and what to do."""


class UserError(Exception):
    """A mistake the user can mend; the command line prints it in one line and exits with code 2."""


class Stopped(Exception):
    """A job was asked to stop, on all its ranks, and has saved; submitting the same job again goes on."""
