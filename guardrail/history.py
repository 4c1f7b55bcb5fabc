"""What the guard remembers of turns that it scored, so that the history of a conversation need not be scored again and again.

A client sends the whole conversation with every request and may send what it likes: earlier turns are judged like the one of
now, from here when they are known, by the scorer when they are not. The memory is only a short cut: without it the verdicts are
the same.

A turn is known by a keyed hash (HMAC-SHA-256, RFC 2104) of its text and its context, never by its words; the key lives and dies
with the process. Memory is bounded by number and by age.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
import threading
from collections import OrderedDict
from time import monotonic

from guardrail.chat import Turn
from guardrail.scoring import Scores


class Memory:
    """Scores by turn: the `size` used last, none older than `ttl` seconds. Safe to use from many threads."""

    def __init__(self, size: int = 50_000, ttl: float = 3600.0) -> None:
        self._size = size
        self._ttl = ttl
        self._key = secrets.token_bytes(32)
        self._known: OrderedDict[bytes, tuple[float, Scores]] = OrderedDict()
        self._lock = threading.Lock()

    def recall(self, scorer: str, turn: Turn) -> Scores | None:
        """Scores that a scorer gave a turn; None when they are unknown or too old."""
        name = self._name(scorer, turn)
        with self._lock:
            until, scores = self._known.get(name, (0.0, None))
            if scores is None or until < monotonic():
                self._known.pop(name, None)
                return None
            self._known.move_to_end(name)
            return scores

    def remember(self, scorer: str, turn: Turn, scores: Scores) -> None:
        """Keep scores; the ones unused for longest make room."""
        name = self._name(scorer, turn)
        with self._lock:
            self._known[name] = (monotonic() + self._ttl, scores)
            self._known.move_to_end(name)
            while len(self._known) > self._size:
                self._known.popitem(last=False)

    def __len__(self) -> int:
        return len(self._known)

    def _name(self, scorer: str, turn: Turn) -> bytes:
        """Each part goes in with its length, so that no two turns read the same."""
        digest = hmac.new(self._key, digestmod=hashlib.sha256)
        for part in (scorer, turn.text, *turn.context):
            data = part.encode("utf-8", "surrogatepass")
            digest.update(len(data).to_bytes(8, "big") + data)
        return digest.digest()
