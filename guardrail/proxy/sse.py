"""Server-sent events as OpenAI clients read them: LF, one `data:` line, an empty line."""

from __future__ import annotations

import json
from collections.abc import Mapping

from guardrail.proxy.envelope import Header

HEADERS: tuple[Header, ...] = (
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),
)
DONE = b"data: [DONE]\n\n"

_BOUNDARIES = (b"\n\n", b"\r\n\r\n", b"\r\r")
_TAIL = 32


def event(data: Mapping[str, object], name: str | None = None) -> bytes:
    """One event; ASCII only, because some clients break lines at U+2028."""
    head = "" if name is None else f"event: {name}\n"
    return f"{head}data: {json.dumps(data)}\n\n".encode()


class Tail:
    """The last bytes of a stream that passes by: is it between two events, has it said that it is done."""

    def __init__(self) -> None:
        self._bytes = b"\n\n"

    def feed(self, piece: bytes) -> None:
        """Take note of the next piece."""
        self._bytes = piece[-_TAIL:] if len(piece) >= _TAIL else (self._bytes + piece)[-_TAIL:]

    @property
    def at_boundary(self) -> bool:
        """Whether an event could be put here."""
        return self._bytes.endswith(_BOUNDARIES)

    @property
    def done(self) -> bool:
        """Whether the stream has ended for a client, although the connection is still open."""
        return self._bytes.rstrip(b"\r\n").endswith(b"[DONE]")
