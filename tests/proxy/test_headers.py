"""Headers go through by a table: what belongs to a connection, to the address or to us stays behind."""

from __future__ import annotations

import pytest

from proxy.conftest import CHAT, Proxies
from proxy.servers import Upstream, ask, connect

SPOCK = {"model": "m", "messages": [{"role": "user", "content": "Who is Spock?"}]}

FORWARDED = {
    "authorization": "Bearer sk-client",
    "openai-organization": "org-1",
    "openai-project": "proj-1",
    "openai-beta": "assistants=v2",
    "idempotency-key": "abc",
    "user-agent": "OpenAI/Python 3.54.0",
    "accept": "application/json",
    "x-stainless-lang": "python",
    "x-request-id": "mine",
    "x-client-request-id": "mine-too",
    "traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
    "x-title": "caf\u00e9",
}
STRIPPED = {
    "cookie": "a=b",
    "te": "trailers",
    "trailer": "x-t",
    "keep-alive": "timeout=5",
    "proxy-authorization": "Basic x",
    "forwarded": "for=1.2.3.4",
    "via": "1.1 x",
    "x-forwarded-for": "1.2.3.4",
    "x-forwarded-host": "evil",
    "x-real-ip": "1.2.3.4",
    "x-http-method-override": "GET",
    "x-original-url": "/admin",
    "x-rewrite-url": "/admin",
    "x-guardrail-action": "allow",
    "x-portkey-custom-host": "http://evil",
    "helicone-target-url": "http://evil",
    "x-upstream-url": "http://evil",
    "x-mine": "named by connection",
    "expect": "100-continue",
}


def test_to_upstream(proxy_url: str, upstream: Upstream) -> None:
    """Identity, tracing and the SDK's own headers arrive as they are; addresses, cookies and hop-by-hop ones do not."""
    pairs = [
        ("connection", "keep-alive, X-Mine"),
        *STRIPPED.items(),
        *((k, v.encode().decode("latin-1")) for k, v in FORWARDED.items()),
    ]
    ask(proxy_url, CHAT, SPOCK, headers=pairs)
    seen = upstream.only
    assert {name: seen.header(name) for name in FORWARDED} == {name: [value] for name, value in FORWARDED.items()}
    assert {name for name in STRIPPED if seen.header(name)} == set()
    assert seen.header("host") == [upstream.url.removeprefix("http://")]
    assert seen.header("content-length") == [str(len(seen.body))]


def test_nothing_is_added(proxy_url: str, upstream: Upstream) -> None:
    """A client that sends no User-Agent, Accept or Accept-Encoding does not get ones."""
    ask(proxy_url, CHAT, SPOCK)
    assert {name.decode() for name, _ in upstream.only.headers} == {"host", "content-type", "content-length"}


def test_repeated_headers_stay_repeated(proxy_url: str, upstream: Upstream) -> None:
    """Both ways, in order."""
    upstream.answers(
        200, b"{}", [("content-type", "application/json"), ("set-cookie", "a=1"), ("set-cookie", "b=2"), ("x-odd", "caf\u00e9")]
    )
    got = ask(proxy_url, CHAT, SPOCK, headers=[("x-tag", "1"), ("x-tag", "2")])
    assert upstream.only.header("x-tag") == ["1", "2"]
    assert [value for name, value in got.headers if name == "set-cookie"] == ["a=1", "b=2"]
    assert (got.header("x-odd") or "").encode("latin-1") == "caf\u00e9".encode()


def test_to_client(proxy_url: str, upstream: Upstream) -> None:
    """Limits, ids and retry advice pass; what speaks about the connection or the address does not, nor a false verdict."""
    kept = {
        "x-request-id": "req_1",
        "openai-processing-ms": "3",
        "retry-after": "1",
        "date": "Fri, 01 Jan 2100 00:00:00 GMT",
        "server": "x",
    }
    dropped = {
        "keep-alive": "timeout=5",
        "alt-svc": "h3",
        "x-guardrail-score": "1",
        "strict-transport-security": "max-age=1",
        "x-mine": "1",
    }
    upstream.answers(200, b"{}", {"content-type": "application/json", "connection": "keep-alive, x-mine", **kept, **dropped})
    got = ask(proxy_url, CHAT, SPOCK)
    assert {name: got.header(name) for name in kept} == kept
    assert {name for name in dropped if got.header(name)} == set()
    assert got.header("content-length") == "2"
    assert len([name for name, _ in got.headers if name in ("date", "server")]) == 2


def test_stored_key_replaces_the_clients(proxies: Proxies, upstream: Upstream) -> None:
    """With a key in the config, nothing of the client's identity goes to the upstream."""
    url = proxies(
        proxy={"upstreams": {name: {"url": f"{upstream.url}/v1", "api_key": "sk-ours"} for name in ("default", "large")}}
    )
    identity = {
        "authorization": "Bearer sk-client",
        "api-key": "a",
        "x-api-key": "b",
        "openai-organization": "org",
        "openai-project": "p",
    }
    ask(url, CHAT, SPOCK, headers=identity)
    assert {name: upstream.only.header(name) for name in identity if upstream.only.header(name)} == {
        "authorization": ["Bearer sk-ours"]
    }


@pytest.mark.parametrize("value", [b"a\x01b", b"caf\xe9", b"a\x7fb"])
def test_odd_bytes_in_headers(proxy_url: str, upstream: Upstream, value: bytes) -> None:
    """Control bytes and text that is no UTF-8 are refused."""
    with connect(proxy_url) as client:
        client.sendall(b"GET /v1/models HTTP/1.1\r\nhost: x\r\nx-odd: " + value + b"\r\n\r\n")
        assert client.recv(65536).startswith(b"HTTP/1.1 400 ")
    assert upstream.requests == []


@pytest.mark.parametrize("headers", [[("x-a", "1")] * 200, [("x-a", "1" * 60_000), ("x-b", "1" * 10_000)]], ids=["many", "long"])
def test_too_many_headers(proxy_url: str, upstream: Upstream, headers: list[tuple[str, str]]) -> None:
    """431 past the limits."""
    got = ask(proxy_url, "/v1/models", headers=headers)
    assert (got.status, got.code) == (431, "headers_too_large")
    assert upstream.requests == []


def test_every_answer_has_an_id_of_its_own(proxy_url: str, upstream: Upstream) -> None:
    """The client's request id is not ours."""
    answers = [
        ask(proxy_url, path, headers={"x-guardrail-request-id": "x", "x-request-id": "x"})
        for path in ("/healthz", "/nowhere", "/v1/models")
    ]
    ids = {answer.header("x-guardrail-request-id") for answer in answers}
    assert len(ids) == 3
    assert "x" not in ids
