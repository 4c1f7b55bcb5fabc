"""Real servers for the tests: the proxy, an upstream that records what reaches it, and one that speaks raw bytes."""

from __future__ import annotations

import asyncio
import http.client
import json
import socket
import threading
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import uvicorn

from guardrail.proxy.server import listen, uvicorn_config

PATIENCE = 10.0
"""Seconds that a test waits for something that must happen."""


@contextmanager
def running(app: Any) -> Iterator[str]:
    """An ASGI app on a server of its own thread, with the settings of `guardrail serve`; yields its URL."""
    listener = listen("127.0.0.1", 0)
    port = listener.getsockname()[1]
    config = uvicorn_config(app)
    config.timeout_graceful_shutdown = 1
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    until(lambda: server.started or not thread.is_alive())
    assert server.started
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join(PATIENCE)
        listener.close()


def until(condition: Callable[[], object], seconds: float = PATIENCE) -> None:
    """Wait for a condition; the test fails when it does not come true."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.005)


@dataclass
class Seen:
    """A request that reached the upstream."""

    method: str
    path: bytes
    query: bytes
    headers: list[tuple[bytes, bytes]]
    client: tuple[str, int]
    body: bytes = b""
    gone: threading.Event = field(default_factory=threading.Event)

    def header(self, name: str) -> list[str]:
        """Every value of a header."""
        return [value.decode() for key, value in self.headers if key == name.encode()]

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class Stop(Exception):
    """The client of the upstream has closed its connection."""


@dataclass
class Call:
    """What an upstream's behaviour has in hand."""

    seen: Seen
    receive: Callable[[], Awaitable[Any]]
    write: Callable[[Any], Awaitable[None]]

    async def start(self, status: int = 200, headers: Mapping[str, str] | list[tuple[str, str]] = {}) -> None:  # noqa: B006
        pairs = headers.items() if isinstance(headers, Mapping) else headers
        raw = [(name.encode(), value.encode()) for name, value in pairs]
        await self.write({"type": "http.response.start", "status": status, "headers": raw})

    async def send(self, piece: bytes, more: bool = True) -> None:
        await self.write({"type": "http.response.body", "body": piece, "more_body": more})

    async def answer(self, status: int, body: bytes, headers: Mapping[str, str] | list[tuple[str, str]] = {}) -> None:  # noqa: B006
        pairs = list(headers.items()) if isinstance(headers, Mapping) else list(headers)
        await self.start(status, [*pairs, ("content-length", str(len(body)))])
        await self.send(body, more=False)

    async def until_gone(self) -> None:
        """Wait until the proxy closes the connection."""
        while (await self.receive())["type"] != "http.disconnect":
            pass
        self.seen.gone.set()


async def complete(call: Call) -> None:
    """Answer as a chat model does, plain or streamed."""
    body = call.seen.json if call.seen.body else {}
    if not call.seen.path.endswith(b"/chat/completions"):
        await call.answer(200, json.dumps(MODELS).encode(), {"content-type": "application/json"})
    elif body.get("stream"):
        await call.start(200, {"content-type": "text/event-stream"})
        for word in ("Live ", "long ", "and ", "prosper."):
            await call.send(chunk({"role": "assistant", "content": word}))
            await asyncio.sleep(0)
        await call.send(chunk({}, "stop") + b"data: [DONE]\n\n", more=False)
    else:
        await call.answer(200, json.dumps(completion("Live long and prosper.")).encode(), {"content-type": "application/json"})


MODELS = {"object": "list", "data": [{"id": "m", "object": "model", "created": 0, "owned_by": "us"}]}


def completion(text: str) -> dict[str, Any]:
    message = {"role": "assistant", "content": text, "refusal": None}
    choice = {"index": 0, "message": message, "finish_reason": "stop", "logprobs": None}
    usage = {"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7}
    return {"id": "chatcmpl-1", "object": "chat.completion", "created": 1, "model": "m", "choices": [choice], "usage": usage}


def chunk(delta: Mapping[str, Any], finish: str | None = None) -> bytes:
    choice = {"index": 0, "delta": delta, "finish_reason": finish, "logprobs": None}
    value = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": "m", "choices": [choice]}
    return b"data: " + json.dumps(value).encode() + b"\n\n"


class Upstream:
    """An ASGI app that records every request and behaves as `behaviour` says; `reset` forgets both."""

    def __init__(self) -> None:
        self.url = ""
        self.reset()

    def reset(self) -> None:
        self.requests: list[Seen] = []
        self.behaviour: Callable[[Call], Awaitable[None]] = complete

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            await receive()
            await send({"type": "lifespan.startup.complete"})
            await receive()
            await send({"type": "lifespan.shutdown.complete"})
            return
        seen = Seen(scope["method"], scope["raw_path"], scope["query_string"], scope["headers"], scope["client"])
        self.requests.append(seen)
        more = True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                seen.gone.set()
                return
            seen.body += message["body"]
            more = message["more_body"]
        await self.behaviour(Call(seen, receive, send))

    def answers(self, status: int, body: bytes, headers: Mapping[str, str] | list[tuple[str, str]]) -> None:
        """From now on the same answer for everybody."""

        async def same(call: Call) -> None:
            await call.answer(status, body, headers)

        self.behaviour = same

    @property
    def only(self) -> Seen:
        """The one request that arrived."""
        assert len(self.requests) == 1
        return self.requests[0]


@contextmanager
def raw_upstream(play: Callable[[socket.socket], None]) -> Iterator[str]:
    """A TCP server that reads a request's head and lets `play` write what it likes; yields its URL."""
    listener = socket.create_server(("127.0.0.1", 0))
    listener.settimeout(PATIENCE)

    def serve() -> None:
        with listener:
            try:
                while True:
                    connection, _ = listener.accept()
                    with connection:
                        connection.recv(65536)
                        play(connection)
            except OSError:
                return

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        # shutdown wakes up accept, close alone does not
        listener.shutdown(socket.SHUT_RDWR)
        thread.join(PATIENCE)


@dataclass(frozen=True)
class Answer:
    """What the proxy answered."""

    status: int
    headers: list[tuple[str, str]]
    body: bytes

    def header(self, name: str) -> str | None:
        return next((value for key, value in self.headers if key == name), None)

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def code(self) -> str:
        """The code of an error envelope, which must be complete."""
        error = self.json["error"]
        assert set(error) == {"message", "type", "param", "code"}
        assert error["message"]
        return str(error["code"])

    @property
    def events(self) -> list[Any]:
        """The data of an event stream; each event is one LF line and an empty one."""
        *events, rest = self.body.decode().split("\n\n")
        assert rest == ""
        assert all(event.startswith("data: ") and "\n" not in event for event in events)
        return [event[6:] if event == "data: [DONE]" else json.loads(event[6:]) for event in events]


def ask(
    url: str,
    path: str,
    body: bytes | Mapping[str, Any] | None = None,
    *,
    method: str | None = None,
    headers: Mapping[str, str] | list[tuple[str, str]] = {},  # noqa: B006
) -> Answer:
    """One request over a connection of its own; JSON unless the headers say otherwise."""
    raw = json.dumps(body).encode() if isinstance(body, Mapping) else body
    pairs = list(headers.items()) if isinstance(headers, Mapping) else list(headers)
    if raw is not None and not any(name.lower() == "content-type" for name, _ in pairs):
        pairs.append(("content-type", "application/json"))
    connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=PATIENCE)
    try:
        connection.putrequest(method or ("GET" if raw is None else "POST"), path, skip_accept_encoding=True)
        for name, value in pairs:
            connection.putheader(name, value)
        if raw is not None and not any(name.lower() in ("content-length", "transfer-encoding") for name, _ in pairs):
            connection.putheader("content-length", str(len(raw)))
        connection.endheaders(raw)
        response = connection.getresponse()
        return Answer(response.status, [(name.lower(), value) for name, value in response.getheaders()], response.read())
    finally:
        connection.close()


def connect(url: str) -> socket.socket:
    """A raw connection."""
    parts = urlsplit(url)
    return socket.create_connection((parts.hostname or "", parts.port or 0), timeout=PATIENCE)


def post(body: bytes, path: str = "/v1/chat/completions") -> bytes:
    """A request as bytes."""
    head = f"POST {path} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
    return head.encode() + body
