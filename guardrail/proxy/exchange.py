"""One request and the answer to it: what was sent so far, and how it is reported."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from email.utils import formatdate
from time import perf_counter
from uuid import uuid4

from guardrail.policy import Decision
from guardrail.proxy import sse
from guardrail.proxy.apis import Reply
from guardrail.proxy.asgi import Scope, Send
from guardrail.proxy.envelope import ApiError, Header

JSON: Header = (b"content-type", b"application/json")


class Exchange:
    """Writes the answer. Each one carries `x-guardrail-request-id`, and `x-guardrail-action` once there is a verdict."""

    def __init__(self, scope: Scope, send: Send) -> None:
        self.method: str = scope["method"]
        self.headers: list[Header] = list(scope["headers"])
        self.request_id = uuid4().hex
        self.decision: Decision | None = None
        self.endpoint = "-"
        self.upstream = "-"
        self.status = 0
        self.outcome = "ok"
        """`ok`, or the code of what went wrong."""
        self.tail: sse.Tail | None = None
        """Follows the body of an event stream that is passed on."""
        self._began = perf_counter()
        self._write = send
        self._writing = False

    @property
    def started(self) -> bool:
        """Whether the status is on its way and cannot be changed any more."""
        return self.status != 0

    @property
    def seconds(self) -> float:
        """Since the request came in."""
        return perf_counter() - self._began

    def header(self, name: str) -> str:
        """Values of a request header, joined as one; empty where it is missing."""
        return ", ".join(value.decode("latin-1") for key, value in self.headers if key == name.encode())

    def is_done(self) -> bool:
        """Whether the client has got a complete event stream, although the upstream still holds it open."""
        return self.tail is not None and self.tail.done

    async def start(self, status: int, headers: Iterable[Header]) -> None:
        """Send status and headers."""
        own = [(b"x-guardrail-request-id", self.request_id.encode())]
        if self.decision is not None:
            own.append((b"x-guardrail-action", self.decision.action.value.encode()))
        self.status = status
        await self._write({"type": "http.response.start", "status": status, "headers": [*headers, *own]})

    async def send(self, piece: bytes) -> None:
        """Send a piece of the body; waits while the client does not read."""
        self._writing = True
        await self._write({"type": "http.response.body", "body": piece, "more_body": True})
        self._writing = False
        if self.tail is not None:
            self.tail.feed(piece)

    async def finish(self, piece: bytes = b"") -> None:
        """End the body, with a last piece of it."""
        await self._write({"type": "http.response.body", "body": piece, "more_body": False})

    async def answer(self, status: int, body: bytes, headers: Sequence[Header] = (JSON,)) -> None:
        """Send a whole answer of our own."""
        framing = [(b"content-length", b"%d" % len(body)), (b"date", formatdate(usegmt=True).encode())]
        await self.start(status, [*headers, *framing])
        await self.finish(body)

    async def reply(self, reply: Reply) -> None:
        """Send what an API makes in the place of the upstream's answer."""
        await self.answer(200, reply.body, sse.HEADERS if reply.stream else (JSON,))

    async def fail(self, error: ApiError) -> None:
        """Send an error: as the answer, or where that has begun already, by breaking it off."""
        self.outcome = error.code
        if self.started:
            await self._break_off(error)
        else:
            await self.answer(error.status, error.body(), [JSON, *error.headers])

    async def _break_off(self, error: ApiError) -> None:
        """Leave the body unfinished, so that no client takes it for complete; between two events, say why."""
        if self.tail is not None and self.tail.at_boundary and not self._writing:
            await self.send(b"data: " + error.body() + b"\n\n")
