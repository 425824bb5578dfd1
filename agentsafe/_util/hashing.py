"""Hash the inputs of a piece of work, for the keys of finished work and for seeds."""

import hashlib
from typing import Any

import msgspec


def key_of(*parts: Any) -> str:
    """Hash plain data, structs and dataclasses to 32 hexadecimal digits.

    Equal parts give the same key in every process; the order of dictionaries does not matter.
    """
    encoded = msgspec.json.encode(parts, order="deterministic")
    return hashlib.blake2b(encoded, digest_size=16).hexdigest()


def draw_seed(*parts: Any) -> int:
    """Derive a seed, 0 to 2^64 - 1, from parts; it is the same in every process."""
    return int(key_of(*parts)[:16], base=16)
