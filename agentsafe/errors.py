"""Define the errors that reach a user as one line, and the kinds of errors that tables record."""

import errno
from typing import Any

#: The values of `error_kind`, in tables and in the progress of jobs.
ERROR_KINDS = {
    "user": "a fault in the config, the data or the environment; the message says how to fix it",
    "stopped": "a signal ended the job",
    "out_of_memory": "the machine or its GPU has too little memory",
    "disk_full": "the disk or the user's quota is full",
    "server": "a server gave no usable answer, after all retries",
    "timeout": "the episode took longer than `rollouts.max_seconds`",
    "refused": "a server refuses the content of the conversation",
    "context": "the conversation does not fit the context of the agent, the emulator or the judge",
    "rollout": "the rollout failed, so there is nothing to label",
    "stale": "a person labelled another text of this rollout",
    "score": "the judge's score is outside 0 to 3",
    "cut": "the judge's answer was cut at `max_tokens`, and again with more room",
    "unrecorded": "the published labels do not record a kind",
    "defect": "any other error of a model, an emulator, a judge or agentsafe",
}
#: A server counts as down if it loses at least `_FEWEST` episodes or labels and more than `_SHARE`.
_SHARE, _FEWEST = 0.05, 3
#: Kinds of errors that one conversation has and another may not.
OF_ONE_CONVERSATION = "refused", "context"


class UserError(Exception):
    """An error that a user can fix; its message is one line: what is wrong, where, and the fix.

    A file with several faults has a line for each.
    """


class RequestFailed(RuntimeError):
    """A request to a server has no answer.

    Attributes:
        usage: an `agentsafe._util.usage.Usage` of answers that were not usable; None without any.
    """

    usage: Any = None


class ServerTrouble(RequestFailed):
    """A server gave no usable answer after all retries; a later request may succeed."""


class OutOfTime(RuntimeError):
    """An episode took too long; with fewer others beside it, it may not."""


class ConversationRefused(RequestFailed):
    """A server refuses the content of this conversation; other conversations may pass."""


class NoRoom(RuntimeError):
    """A conversation leaves no room for an answer in a model's context."""


def stop_if_down(lost: int, total: int, last: str) -> None:
    """End a job whose server is down, before its failures become rows of a table.

    Args:
        lost: episodes or labels that failed because of the server, or took too long.
        total: episodes or labels of the job.
        last: the server's last error, on one line.

    Raises:
        UserError: at least 3, and more than 5 %, are lost.
    """
    if lost >= _FEWEST and lost > _SHARE * total:
        raise UserError(
            f"{lost} of {total} are lost to a failing or slow server ({last}); finished work is "
            "kept: fix the server and run the same command again"
        )


def stop_if_refused(refused: int, total: int, last: str, *, key: str, share: float) -> None:
    """End a job that loses too many conversations to be a fair sample of its cases.

    Args:
        refused: episodes or labels that a server refused, or that fit no context.
        total: episodes or labels of the job.
        last: the last such error, on one line.
        key: the config's key of `share`.
        share: the most that may be lost, 0 to 1.

    Raises:
        UserError: at least 3, and more than the share, are lost.
    """
    if refused >= _FEWEST and refused > share * total:
        raise UserError(
            f"{refused} of {total} are refused or do not fit a context ({last}), more than the "
            f"share of {key} ({share:g}); finished work is kept: use another server or a larger "
            "context, or raise the share, and run the same command again"
        )


_BY_TYPE = {
    UserError: "user",
    ServerTrouble: "server",
    OutOfTime: "timeout",
    ConversationRefused: "refused",
    NoRoom: "context",
}
_BY_NUMBER = {errno.ENOSPC: "disk_full", errno.EDQUOT: "disk_full"}
_BY_WORDS = {  # libraries raise types of their own with these words in common
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
    """Tell whether an error reports too little memory, whichever library raised it."""
    return error_kind(error) == "out_of_memory"
