"""Scores of the turns seen last: an exact cache, keyed by all of a turn's text.

There is no cache of similar texts: an attacker chooses what collides there.
"""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict

from guardrail.chat import Turn
from guardrail.scoring import Scores


def turn_key(turn: Turn) -> bytes:
    """A digest (BLAKE2b, 160 bits) that no two turns share; a stored key is small however long the text was."""
    digest = hashlib.blake2b(digest_size=20)
    for part in (turn.text, *turn.context):
        data = part.encode("utf-8", "surrogatepass")
        digest.update(len(data).to_bytes(8, "big") + data)
    return digest.digest()


class Results:
    """The `size` results used last; safe to use from many threads."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._lock = threading.Lock()
        self._scores: OrderedDict[bytes, Scores] = OrderedDict()

    def get(self, key: bytes) -> Scores | None:
        """The scores stored under a key."""
        with self._lock:
            if key in self._scores:
                self._scores.move_to_end(key)
            return self._scores.get(key)

    def put(self, key: bytes, scores: Scores) -> None:
        """Store scores; the ones not used for longest go."""
        with self._lock:
            self._scores[key] = scores
            self._scores.move_to_end(key)
            if len(self._scores) > self._size:
                self._scores.popitem(last=False)
