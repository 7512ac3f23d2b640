"""What a verb may end with that its user reads as one line."""

# sysexits.h calls it EX_TEMPFAIL: nothing is wrong, the same command goes on later. Launch files start again what ends with it.
PREEMPTED = 75


class UserError(Exception):
    """Something the user gave is wrong: one line that names the file, what is wrong and what would be right.

    The command line prints it and exits with status 2.
    """


class Preempted(Exception):
    """The machine is asked for by others (SIGTERM): the state is saved, and the same command goes on from there.

    The command line prints it and exits with status `PREEMPTED`.
    """
