"""Kinds of errors from different libraries."""

import errno

import pytest

from agentsafe.errors import (
    ERROR_KINDS,
    ConversationRefused,
    ServerTrouble,
    UserError,
    error_kind,
)


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (UserError("out of memory is what the config says"), "user"),
        (ServerTrouble("status 500 (CUDA out of memory)"), "server"),
        (ConversationRefused("no"), "refused"),
        (MemoryError(), "out_of_memory"),
        (RuntimeError("CUDA out of memory. Tried to allocate 2 GiB"), "out_of_memory"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), "out_of_memory"),
        (OSError(errno.ENOSPC, "no room"), "disk_full"),
        (OSError(errno.EDQUOT, "no room"), "disk_full"),
        (RuntimeError("write failed: No space left on device"), "disk_full"),
        (OSError(errno.ECONNRESET, "reset"), "defect"),
        (ValueError("out of luck"), "defect"),
    ],
)
def test_an_error_has_one_kind(error, kind):
    assert error_kind(error) == kind
    assert kind in ERROR_KINDS
