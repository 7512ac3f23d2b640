"""The one exception that a user may see."""


class UserError(Exception):
    """Something the user gave is wrong: one line that names the file, what is wrong and what would be right.

    The command line prints it and exits with status 2.
    """
