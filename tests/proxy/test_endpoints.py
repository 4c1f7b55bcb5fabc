"""What is not in the table does not exist, however it is spelled."""

from __future__ import annotations

import pytest

from guardrail.proxy.endpoints import BLOCKED, ENDPOINTS, find
from guardrail.proxy.envelope import ApiError
from proxy.conftest import CHAT, Proxies
from proxy.servers import Upstream, ask, connect

BODY = b'{"messages": [{"role": "user", "content": "Who is Spock?"}], "input": "x", "prompt": "x"}'

TRICKS = [
    "/v1/chat%2Fcompletions",
    "/v1/%63hat/completions",
    "/v1/chat/completions%00",
    "/v1//chat/completions",
    "//v1/chat/completions",
    "/v1/./chat/completions",
    "/v1/../v1/chat/completions",
    "/v1/models/../chat/completions",
    "/v1/models/..",
    "/v1/models/%2e%2e",
    "/v1/models/a/b",
    "/v1/models/a%2Fb",
    "/v1/models/",
    "/v1/models/{model}",
    "/v1/chat/completions;x=1",
    "/v1/chat/completions/",
    "/v1/chat/completions/chatcmpl-1",
    "/v1\\chat\\completions",
    "/V1/chat/completions",
    "/v1/Chat/Completions",
    "/v1/chat/completions#x",
    "/v1/chat",
    "/",
    "/v1",
    "*",
]

OTHERS = [
    *("/v1/embeddings", "/v1/images/generations", "/v1/audio/speech", "/v1/moderations", "/v1/files", "/v1/batches"),
    *("/v1/assistants", "/v1/threads/t/messages", "/v1/realtime", "/v1/organization/users", "/v1/messages", "/invocations"),
    *("/pooling", "/classify", "/score", "/rerank", "/tokenize", "/detokenize", "/inference/v1/generate", "/pause"),
    *("/api/chat", "/api/generate", "/api/tags", "/completion", "/infill", "/metrics", "/docs", "/openapi.json"),
]


@pytest.mark.parametrize("path", TRICKS + OTHERS)
def test_blocked(proxy_url: str, upstream: Upstream, path: str) -> None:
    """403 with an explanation, or 400 for what is no HTTP; the upstream saw nothing."""
    with connect(proxy_url) as client:
        head = f"POST {path} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: {len(BODY)}\r\n\r\n"
        client.sendall(head.encode() + BODY)
        got = client.recv(65536)
    assert got.startswith(b"HTTP/1.1 403 ") or got.startswith(b"HTTP/1.1 400 ")
    if got.startswith(b"HTTP/1.1 403 "):
        assert b'"code": "endpoint_blocked"' in got
        assert b"POST /v1/chat/completions" in got
    assert upstream.requests == []


@pytest.mark.parametrize(("prefix", "why"), BLOCKED)
def test_reason(prefix: str, why: str) -> None:
    """Well-known paths are blocked with their reason, and none of them is served."""
    with pytest.raises(ApiError, match=why):
        find("POST", prefix.encode() + b"x")
    assert not any(row.path.startswith(prefix) for row in ENDPOINTS)


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE"])
def test_method(proxy_url: str, upstream: Upstream, method: str) -> None:
    """405 with Allow; no header and no query turns one method into another."""
    headers = {"x-http-method-override": "POST", "x-method-override": "POST"}
    got = ask(proxy_url, f"{CHAT}?_method=POST", BODY, method=method, headers=headers)
    assert (got.status, got.code, got.header("allow")) == (405, "method_not_allowed", "POST")
    assert upstream.requests == []


def test_target_with_host(proxy_url: str, upstream: Upstream) -> None:
    """A target in absolute form cannot choose the upstream."""
    with connect(proxy_url) as client:
        client.sendall(b"GET http://evil.example/v1/models HTTP/1.1\r\nhost: evil.example\r\nconnection: close\r\n\r\n")
        assert b"".join(iter(lambda: client.recv(65536), b"")).startswith(b"HTTP/1.1 ")
    assert all(seen.path == b"/v1/models" and "evil" not in "".join(seen.header("host")) for seen in upstream.requests)


def test_websocket_is_refused(proxy_url: str, upstream: Upstream) -> None:
    """There is no socket mode of anything."""
    with connect(proxy_url) as client:
        client.sendall(
            b"GET /v1/realtime HTTP/1.1\r\nhost: x\r\nconnection: upgrade\r\nupgrade: websocket\r\n"
            b"sec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\nsec-websocket-version: 13\r\n\r\n"
        )
        assert client.recv(65536).startswith(b"HTTP/1.1 403 ")
    assert upstream.requests == []


def test_health(proxy_url: str, upstream: Upstream) -> None:
    """The process is alive and the guard can score; no upstream is needed for that."""
    for path in ("/healthz", "/readyz"):
        got = ask(proxy_url, path)
        assert (got.status, got.json) == (200, {"status": "ok"})
    assert upstream.requests == []


def test_not_ready(proxies: Proxies) -> None:
    """A guard that cannot score is not ready, while the process is alive."""
    from guardrail.errors import ScoringError
    from guardrail.testing import FixedScorer

    url = proxies(scorer=FixedScorer(star_trek=ScoringError("dead")))
    assert ask(url, "/healthz").status == 200
    got = ask(url, "/readyz")
    assert (got.status, got.code) == (503, "guard_unavailable")
