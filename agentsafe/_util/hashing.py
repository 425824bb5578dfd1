"""Hash what shaped a piece of work: for keys of finished work, and for seeds.."""

import hashlib
from typing import Any

import msgspec


def key_of(*parts: Any) -> str:
    """A hash of what shaped a piece of work: plain data, cases, messages, settings.

    The same parts give the same key in every process; dictionaries in whatever order.
    """
    encoded = msgspec.json.encode(parts, order="deterministic")
    return hashlib.blake2b(encoded, digest_size=16).hexdigest()


def draw_seed(*parts: Any) -> int:
    """A seed for one draw, 0 to 2^64 - 1: the same parts give the same in every process."""
    return int(key_of(*parts)[:16], base=16)
