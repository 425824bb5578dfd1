"""Errors that reach a user as a single line, and those that a row of a table tells."""

#: Of so many lost episodes or labels, more than this share means that a server is down.
_SHARE, _FEWEST = 0.05, 3


class UserError(Exception):
    """Something a user can mend; its message is one line saying what, where and how."""


class ServerTrouble(RuntimeError):
    """A server gave no usable answer, however often it was asked; another time it might."""


def stop_if_down(lost: int, total: int, last: str) -> None:
    """End a job whose server is down: rows of it would pass for findings.

    Args:
        lost: episodes or labels that a server's trouble ended.
        total: of the job.
        last: what the server's last trouble was, on one line.

    Raises:
        UserError: 3 are lost, and more than 5 % of all.
    """
    if lost >= _FEWEST and lost > _SHARE * total:
        raise UserError(
            f"{lost} of {total} are lost to a server's trouble; what is done is kept, so mend the "
            f"server and run the same command again ({last})"
        )


_EXHAUSTED = "can't allocate memory", "out of memory"


def out_of_memory(error: Exception) -> bool:
    """Whether an error says that there was too little memory, whichever library noticed."""
    return isinstance(error, MemoryError) or any(words in str(error) for words in _EXHAUSTED)
