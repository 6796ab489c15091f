"""The one error that a user can fix."""


class InputError(ValueError):
    """Something the user gave is wrong; the message is one sentence: what, where, the fix.

    The stage scripts print it as ``error: ...`` and exit with status 2.
    """
