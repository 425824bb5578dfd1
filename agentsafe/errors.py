"""Errors that reach a user as a single line, and the kinds of errors that tables record."""

import errno

#: The values of `error_kind`, in tables and in the progress of jobs.
ERROR_KINDS = {
    "user": "a fault in the config, the data or the environment, which the message says how to fix",
    "stopped": "the job was ended from outside, by a signal",
    "out_of_memory": "the machine or its GPU has too little memory",
    "disk_full": "the disk, or the user's share of it, is full",
    "server": "a server gave no usable answer, after all retries",
    "refused": "a server's rules forbid an answer to the conversation",
    "context": "the rollout does not fit the judge's context",
    "rollout": "the rollout failed, so that there is nothing to label",
    "score": "the judge's score is outside 0 to 3",
    "unrecorded": "the published labels do not say of which kind",
    "defect": "anything else that a model, an emulator, a judge or agentsafe raised",
}
#: Of so many lost episodes or labels, more than this share means that a server is down.
_SHARE, _FEWEST = 0.05, 3


class UserError(Exception):
    """Something a user can mend; its message is one line saying what, where and how."""


class ServerTrouble(RuntimeError):
    """A server gave no usable answer, however often it was asked; another time it might."""


class ConversationRefused(RuntimeError):
    """A server will not answer this conversation, whatever else it answers."""


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


_BY_TYPE = {UserError: "user", ServerTrouble: "server", ConversationRefused: "refused"}
_BY_NUMBER = {errno.ENOSPC: "disk_full", errno.EDQUOT: "disk_full"}
_BY_WORDS = {  # libraries raise their own types, and agree on the words alone
    "no space left on device": "disk_full",
    "disk quota exceeded": "disk_full",
    "out of memory": "out_of_memory",
    "can't allocate memory": "out_of_memory",
}


def error_kind(error: BaseException) -> str:
    """Return the kind of an error: one of `ERROR_KINDS`."""
    if isinstance(error, MemoryError):
        return "out_of_memory"
    for known, kind in _BY_TYPE.items():
        if isinstance(error, known):
            return kind
    if isinstance(error, OSError) and error.errno in _BY_NUMBER:
        return _BY_NUMBER[error.errno]
    text = str(error).lower()
    return next((kind for words, kind in _BY_WORDS.items() if words in text), "defect")


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that there is too little memory, whichever library raised it."""
    return error_kind(error) == "out_of_memory"
