"""The one exception that reaches a user as a single line."""


class UserError(Exception):
    """Something a user can mend; its message is one line saying what, where and how."""
