"""Seeds for the independent random draws of a run, derived from the one seed of the user."""

from __future__ import annotations

import hashlib


def derive_seed(purpose: str, *keys: int) -> int:
    """Return a seed for one purpose, unrelated to that of another purpose or other keys.

    Examples
    --------
    >>> derive_seed("batches", 0, 1) == derive_seed("batches", 0, 1)
    True
    >>> derive_seed("batches", 0, 1) == derive_seed("epoch", 0, 1)
    False
    """
    text = ":".join([purpose, *map(str, keys)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big")
