"""A client that leaves stops the work for it, wherever that is."""

from __future__ import annotations

import json
import threading
from collections.abc import Awaitable, Callable
from concurrent.futures import Future
from typing import Any

import pytest

from guardrail.chat import Turn
from guardrail.scoring import Scores
from guardrail.testing import FixedScorer
from proxy.conftest import CHAT, Proxies
from proxy.servers import Call, Upstream, ask, chunk, connect, post, until

WITHIN = 1.0
"""Seconds from the client's leaving to the upstream's notice."""


def body(stream: bool, said: str = "Who is Spock?") -> bytes:
    return json.dumps({"messages": [{"role": "user", "content": said}], "stream": stream}).encode()


async def before_headers(call: Call) -> None:
    await call.until_gone()


async def after_headers(call: Call) -> None:
    await call.start(200, {"content-type": "text/event-stream"})
    await call.until_gone()


async def between_pieces(call: Call) -> None:
    await call.start(200, {"content-type": "text/event-stream"})
    await call.send(chunk({"content": "x"}))
    await call.until_gone()


async def in_plain_body(call: Call) -> None:
    await call.start(200, {"content-type": "application/json", "content-length": "100"})
    await call.send(b"{")
    await call.until_gone()


@pytest.mark.parametrize(
    ("behaviour", "first", "stream"),
    [
        (before_headers, b"", False),
        (before_headers, b"", True),
        (after_headers, b"200 OK", True),
        (between_pieces, b"chunk", True),
        (in_plain_body, b"{", False),
    ],
)
def test_upstream_is_cancelled(
    proxy_url: str, upstream: Upstream, behaviour: Callable[[Call], Awaitable[None]], first: bytes, stream: bool
) -> None:
    """While the upstream thinks, between its pieces, in a plain answer: its connection closes within a second."""
    upstream.behaviour = behaviour
    with connect(proxy_url) as client:
        client.sendall(post(body(stream)))
        until(lambda: upstream.requests)
        got = b""
        while first not in got:
            got += client.recv(65536)
    assert upstream.only.gone.wait(WITHIN)


def test_upstream_is_cancelled_for_models(proxy_url: str, upstream: Upstream) -> None:
    """Requests that pass unguarded are cancelled too."""
    upstream.behaviour = before_headers
    with connect(proxy_url) as client:
        client.sendall(b"GET /v1/models HTTP/1.1\r\nhost: x\r\n\r\n")
        until(lambda: upstream.requests)
    assert upstream.only.gone.wait(WITHIN)


class Slow(FixedScorer):
    """Never comes to an end by itself."""

    def __init__(self) -> None:
        super().__init__(star_trek=1.0)
        self.future: Future[Scores] | None = None
        self.cancelled = threading.Event()

    def submit(self, turn: Turn) -> Future[Scores]:
        self.future = Future()
        self.future.add_done_callback(lambda future: self.cancelled.set() if future.cancelled() else None)
        return self.future


def test_scoring_is_cancelled(proxies: Proxies, upstream: Upstream) -> None:
    """While the guard scores: the score is cancelled, and the upstream never hears of the request."""
    scorer = Slow()
    url = proxies(scorer=scorer)
    with connect(url) as client:
        client.sendall(post(body(False)))
        until(lambda: scorer.future)
    assert scorer.cancelled.wait(WITHIN)
    assert upstream.requests == []


def test_leaving_with_half_a_body_is_no_fault(proxy_url: str, upstream: Upstream, caplog: pytest.LogCaptureFixture) -> None:
    """While the body is read: nothing is scored, sent or complained about."""
    with caplog.at_level("INFO", logger="guardrail.proxy"):
        with connect(proxy_url) as client:
            client.sendall(post(body(False))[:-10])
        until(lambda: "outcome=client_gone" in caplog.text)
    assert upstream.requests == []
    assert not [record for record in caplog.records if record.levelname in ("WARNING", "ERROR")]


def test_leaving_after_done_is_the_usual_end(proxy_url: str, upstream: Upstream, caplog: pytest.LogCaptureFixture) -> None:
    """The Python client closes at [DONE], before the stream's end: the upstream's connection is kept for the next request."""
    may_end = threading.Event()

    async def late_end(call: Call) -> None:
        import asyncio

        await call.start(200, {"content-type": "text/event-stream"})
        await call.send(b"data: [DONE]\n\n")
        await asyncio.to_thread(may_end.wait, 5)
        await call.send(b"", more=False)

    upstream.behaviour = late_end
    with caplog.at_level("INFO", logger="guardrail.proxy"):
        with connect(proxy_url) as client:
            client.sendall(post(body(True)))
            got = b""
            while b"[DONE]" not in got:
                got += client.recv(65536)
        threading.Timer(0.2, may_end.set).start()
        until(lambda: "outcome=" in caplog.text)
    assert "outcome=ok" in caplog.text
    upstream.answers(200, b"{}", {"content-type": "application/json"})
    ask(proxy_url, CHAT, body(False))
    assert len({seen.client for seen in upstream.requests}) == 1


def test_slow_reader_holds_up_the_upstream(proxy_url: str, upstream: Upstream) -> None:
    """A client that does not read makes the upstream wait; its answer does not pile up in the proxy."""
    sent: list[int] = []
    piece = b"x" * 65536

    async def flood(call: Call) -> None:
        await call.start(200, {"content-type": "text/event-stream"})
        for _ in range(2000):  # 128 MiB
            await call.send(piece)
            sent.append(len(piece))

    upstream.behaviour = flood
    with connect(proxy_url) as client:
        client.sendall(post(body(True)))
        counted: list[Any] = [-1]

        def stalled() -> bool:
            before, counted[0] = counted[0], sum(sent)
            threading.Event().wait(0.3)
            return bool(sent) and before == sum(sent)

        until(stalled)
        assert sum(sent) < 32 * 2**20


def test_client_that_does_not_read_is_given_up(proxies: Proxies, upstream: Upstream, caplog: pytest.LogCaptureFixture) -> None:
    """After the longest silence, the request of a client that takes nothing is ended, here and upstream."""

    async def flood(call: Call) -> None:
        await call.start(200, {"content-type": "text/event-stream"})
        for _ in range(2000):  # 128 MiB, a boundary wherever it is cut
            await call.send(b"\n" * 65536)

    upstream.behaviour = flood
    url = proxies(
        proxy={"upstreams": {name: {"url": f"{upstream.url}/v1", "idle_timeout": 0.5} for name in ("default", "large")}}
    )
    with caplog.at_level("INFO", logger="guardrail.proxy"), connect(url) as client:
        client.sendall(post(body(True)))
        until(lambda: "outcome=upstream_timeout" in caplog.text)
