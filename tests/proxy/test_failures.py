"""Each failure is an error envelope in time, without a word about what lies behind the proxy."""

from __future__ import annotations

import asyncio
import json
import logging
import socket
from typing import Any

import pytest

from guardrail import Guard
from guardrail.proxy import create_app
from guardrail.testing import FixedScorer
from proxy.conftest import CHAT, Proxies, config_for
from proxy.servers import Call, Upstream, ask, chunk, connect, post, raw_upstream, running, until

SPOCK = {"model": "m", "messages": [{"role": "user", "content": "Who is Spock?"}]}


def upstreams(url: str, **changes: Any) -> dict[str, Any]:
    """A proxy section whose upstreams have other settings."""
    return {"upstreams": {name: {"url": f"{url}/v1", "api_key": "sk-secret", **changes} for name in ("default", "large")}}


def test_unreachable(proxies: Proxies) -> None:
    """Nobody listens there: 502, and no host or key is named."""
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    got = ask(proxies(proxy=upstreams(f"http://127.0.0.1:{port}")), CHAT, SPOCK)
    assert (got.status, got.code, got.header("x-guardrail-action")) == (502, "upstream_unreachable", "allow")
    assert all(secret not in got.body.decode() for secret in ("127.0.0.1", str(port), "sk-secret"))


def test_no_address(proxies: Proxies) -> None:
    """A name that does not exist is unreachable."""
    got = ask(proxies(proxy=upstreams("http://nowhere.invalid")), CHAT, SPOCK)
    assert (got.status, got.code) == (502, "upstream_unreachable")
    assert "nowhere" not in got.body.decode()


@pytest.mark.parametrize("said", [b"", b"SSH-2.0-OpenSSH\r\n", b"HTTP/1.1 200 OK\r\nbad header\r\n\r\n"])
def test_no_http(proxies: Proxies, said: bytes) -> None:
    """A server that hangs up or speaks something else counts as unreachable."""
    with raw_upstream(lambda connection: connection.sendall(said)) as url:
        got = ask(proxies(url), CHAT, SPOCK)
    assert (got.status, got.code) == (502, "upstream_unreachable")


async def silence(call: Call) -> None:
    await call.until_gone()


def test_headers_timeout(proxies: Proxies, upstream: Upstream) -> None:
    """An upstream that does not begin to answer: 504, and its connection is closed."""
    upstream.behaviour = silence
    got = ask(proxies(proxy=upstreams(upstream.url, headers_timeout=0.2)), CHAT, SPOCK)
    assert (got.status, got.code) == (504, "upstream_timeout")
    assert upstream.only.gone.wait(5)


def test_headers_may_take_longer_than_a_silence(proxies: Proxies, upstream: Upstream) -> None:
    """The first token may take its time: only silences after the headers count as idle."""

    async def slow_start(call: Call) -> None:
        await asyncio.sleep(0.6)
        await call.answer(200, b"{}", {"content-type": "application/json"})

    upstream.behaviour = slow_start
    assert ask(proxies(proxy=upstreams(upstream.url, idle_timeout=0.2, headers_timeout=10)), CHAT, SPOCK).status == 200


def test_idle_timeout(proxies: Proxies, upstream: Upstream) -> None:
    """A stream that falls silent ends with an error event and a broken connection."""

    async def stall(call: Call) -> None:
        await call.start(200, {"content-type": "text/event-stream"})
        for _ in range(5):  # together longer than the limit, each of them shorter
            await call.send(chunk({"content": "x"}))
            await asyncio.sleep(0.3)
        await call.until_gone()

    upstream.behaviour = stall
    with connect(proxies(proxy=upstreams(upstream.url, idle_timeout=1.0))) as client:
        client.sendall(post(json.dumps({**SPOCK, "stream": True}).encode()))
        got = b"".join(iter(lambda: client.recv(65536), b""))
    assert got.count(b'"content": "x"') == 5
    assert b'"code": "upstream_timeout"' in got
    assert not got.endswith(b"0\r\n\r\n")
    assert upstream.only.gone.wait(5)


@pytest.mark.parametrize("end", [b"\n\n", b"\r\n\r\n", b"\r\r"])
def test_broken_stream_says_why_between_events(proxies: Proxies, end: bytes) -> None:
    """After a whole event, whatever its line ends, comes an error event; the body has no end."""
    event = b"data: {}" + end
    head = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
    with raw_upstream(lambda c: c.sendall(head + b"%x\r\n%b\r\n" % (len(event), event))) as url, connect(proxies(url)) as client:
        client.sendall(post(json.dumps({**SPOCK, "stream": True}).encode()))
        got = b"".join(iter(lambda: client.recv(65536), b""))
    assert b"upstream_disconnected" in got.partition(event)[2]
    assert not got.endswith(b"0\r\n\r\n")


def test_clean_end_without_done_stays_clean(proxy_url: str, upstream: Upstream) -> None:
    """A stream that ends well without [DONE] is passed on as it is: nothing is added."""
    upstream.answers(200, chunk({"content": "x"}), {"content-type": "text/event-stream"})
    assert ask(proxy_url, CHAT, {**SPOCK, "stream": True}).body == chunk({"content": "x"})


@pytest.mark.parametrize("status", [400, 401, 404, 429, 500, 503])
def test_json_errors_pass(proxy_url: str, upstream: Upstream, status: int) -> None:
    """Status, body and the headers about retries are the upstream's."""
    body = b'{"error": {"message":"no"}}'
    kept = {"retry-after": "7", "retry-after-ms": "7000", "x-should-retry": "false", "x-ratelimit-remaining-requests": "0"}
    upstream.answers(status, body, {"content-type": "application/json", **kept})
    got = ask(proxy_url, CHAT, SPOCK)
    assert (got.status, got.body) == (status, body)
    assert {name: got.header(name) for name in kept} == kept


@pytest.mark.parametrize("kind", ["text/html", "text/plain", ""])
def test_error_pages_are_replaced(proxy_url: str, upstream: Upstream, kind: str) -> None:
    """A 5xx page of a server in between becomes an envelope; when to come back is kept."""
    upstream.answers(502, b"<h1>nginx at 10.0.0.7</h1>", {**({"content-type": kind} if kind else {}), "retry-after": "4"})
    got = ask(proxy_url, CHAT, SPOCK)
    assert (got.status, got.code, got.header("retry-after")) == (502, "upstream_error", "4")
    assert b"10.0.0.7" not in got.body


def test_redirects_are_not_followed(proxy_url: str, upstream: Upstream) -> None:
    """A redirect could lead anywhere: 502, one request, no Location."""
    upstream.answers(307, b"", {"location": "http://169.254.169.254/"})
    got = ask(proxy_url, CHAT, SPOCK)
    assert (got.status, got.code, got.header("location")) == (502, "upstream_redirected", None)
    assert len(upstream.requests) == 1


def test_connection_limit(proxies: Proxies, upstream: Upstream) -> None:
    """Past the limit of requests under way: 503 with Retry-After at once; afterwards it works again."""
    upstream.behaviour = silence
    url = proxies(proxy={**upstreams(upstream.url), "max_connections": 1})
    with connect(url) as first:
        first.sendall(post(json.dumps(SPOCK).encode()))
        until(lambda: len(upstream.requests) == 1)
        got = ask(url, CHAT, SPOCK)
        assert (got.status, got.code, got.header("retry-after")) == (503, "too_many_requests", "1")
    assert upstream.only.gone.wait(5)
    upstream.reset()
    until(lambda: ask(url, CHAT, SPOCK).status == 200)


@pytest.mark.parametrize("chunked", [False, True])
def test_body_limit(proxies: Proxies, upstream: Upstream, chunked: bool) -> None:
    """A body past the limit is 413, told by its length or counted while it arrives."""
    url = proxies(proxy={**upstreams(upstream.url), "max_body_bytes": 2048})
    with connect(url) as client:
        framing = b"transfer-encoding: chunked" if chunked else b"content-length: 4096"
        client.sendall(
            b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n" + framing + b"\r\n\r\n"
        )
        client.sendall(b"1000\r\n" * chunked + b" " * 4096)
        got = client.recv(65536)
    assert got.startswith(b"HTTP/1.1 413 ")
    assert b'"code": "request_too_large"' in got
    assert upstream.requests == []


def test_slow_body(proxies: Proxies, upstream: Upstream) -> None:
    """A body that does not arrive in time is 408, however steadily it drips."""
    with connect(proxies(proxy={**upstreams(upstream.url), "body_timeout": 0.3})) as client:
        client.sendall(post(b"{" + b" " * 100)[:-100])
        got = client.recv(65536)
    assert got.startswith(b"HTTP/1.1 408 ")
    assert upstream.requests == []


def test_fault_of_ours(upstream: Upstream, caplog: pytest.LogCaptureFixture) -> None:
    """A bug ends as an envelope; the log has its place and no text, and nothing reaches the upstream."""

    class Buggy(Guard):
        async def ajudge(self, said: Any, **more: Any) -> Any:
            raise KeyError(said[0]["content"])

    config = config_for(upstream.url)
    with running(create_app(config, Buggy(FixedScorer(star_trek=1.0), config.policy()))) as url:
        got = ask(url, CHAT, {"messages": [{"role": "user", "content": "my secret"}]})
    assert (got.status, got.code) == (500, "internal_error")
    assert upstream.requests == []
    assert "KeyError" in caplog.text
    assert "my secret" not in caplog.text


def test_log_line(proxy_url: str, upstream: Upstream, caplog: pytest.LogCaptureFixture) -> None:
    """One line per request: id, endpoint, action, upstream, status, time; no text and no secret."""
    with caplog.at_level(logging.INFO, logger="guardrail.proxy"):
        got = ask(proxy_url, CHAT + "?key=sk-query", SPOCK, headers={"authorization": "Bearer sk-client"})
        until(lambda: caplog.records)
    (record,) = [record for record in caplog.records if record.name == "guardrail.proxy"]
    line = record.getMessage()
    for part in (
        f"request_id={got.header('x-guardrail-request-id')}",
        f"endpoint={CHAT}",
        "action=allow",
        "upstream=default",
        "status=200",
        "ms=",
    ):
        assert part in line
    assert "Spock" not in caplog.text
    assert "sk-" not in caplog.text
