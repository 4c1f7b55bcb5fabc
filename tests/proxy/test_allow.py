"""An allowed request is invisible: the same bytes there and back."""

from __future__ import annotations

import gzip
import hashlib
import json
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from proxy.conftest import CHAT
from proxy.servers import Call, Upstream, ask

HELLO = {"model": "m", "messages": [{"role": "user", "content": "Who is Spock?"}]}

text = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
scalar = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | text
extra = st.dictionaries(
    text.map("x_{}".format), st.recursive(scalar, lambda inner: st.lists(inner) | st.dictionaries(text, inner), max_leaves=8)
)
messages = st.lists(
    st.builds(lambda role, content: {"role": role, "content": content}, st.sampled_from(["user", "assistant", "system"]), text),
    min_size=1,
    max_size=4,
)


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@st.composite
def bodies(draw: st.DrawFn) -> bytes:
    """A valid request, its JSON written in one of many ways."""
    body: dict[str, Any] = {**draw(extra), "messages": draw(messages), "stream": draw(st.booleans())}
    indent = draw(st.sampled_from([None, 0, 3]))
    separators = draw(st.sampled_from([(",", ":"), (" , ", "\n:\t"), None]))
    raw = json.dumps(body, ensure_ascii=draw(st.booleans()), indent=indent, separators=separators)
    number = draw(st.sampled_from(["1.0", "1E5", "123456789012345678901234567890", "-0", "0.10"]))
    return draw(st.sampled_from(["", " ", "\n\t"])).encode() + raw.replace("{", f'{{"x":{number},', 1).encode() + b" "


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(body=bodies(), answer=st.binary(max_size=300))
def test_bytes_are_the_same_there_and_back(open_url: str, upstream: Upstream, body: bytes, answer: bytes) -> None:
    """What the upstream receives and what the client receives have the hashes of what was sent, plain and streamed."""
    upstream.reset()
    kind = "text/event-stream" if json.loads(body)["stream"] else "application/json"

    async def in_pieces(call: Call) -> None:
        await call.start(200, {"content-type": kind})
        for start in range(0, len(answer), 97):
            await call.send(answer[start : start + 97])
        await call.send(b"", more=False)

    upstream.behaviour = in_pieces
    got = ask(open_url, CHAT, body)
    assert got.status == 200
    assert sha256(upstream.only.body) == sha256(body)
    assert sha256(got.body) == sha256(answer)


def test_compressed_answer_is_passed_as_it_is(proxy_url: str, upstream: Upstream) -> None:
    """A plain answer may be compressed; neither its bytes nor its encoding change."""
    packed = gzip.compress(b'{"ok": true}')
    upstream.answers(200, packed, {"content-type": "application/json", "content-encoding": "gzip"})
    got = ask(proxy_url, CHAT, HELLO, headers={"accept-encoding": "gzip, br"})
    assert (got.body, got.header("content-encoding")) == (packed, "gzip")
    assert upstream.only.header("accept-encoding") == ["gzip, br"]


def test_stream_is_asked_for_uncompressed(proxy_url: str, upstream: Upstream) -> None:
    """A compressed stream would wait in buffers, so a stream is asked for as it is."""
    ask(proxy_url, CHAT, {**HELLO, "stream": True}, headers={"accept-encoding": "gzip"})
    assert upstream.only.header("accept-encoding") == ["identity"]


def test_large_body_passes(proxy_url: str, upstream: Upstream) -> None:
    """A long history, larger than every buffer on the way, arrives whole."""
    history = [{"role": "assistant", "content": "x" * 3_000_000}, *HELLO["messages"]]
    body = json.dumps({**HELLO, "messages": history}).encode()
    assert ask(proxy_url, CHAT, body).status == 200
    assert sha256(upstream.only.body) == sha256(body)


def test_url_is_built_from_config_and_table(proxy_url: str, upstream: Upstream) -> None:
    """The upstream sees its own path and no query, whatever alias and query the client used."""
    ask(proxy_url, "/chat/completions?api_base=http://evil", HELLO)
    assert (upstream.only.path, upstream.only.query) == (b"/v1/chat/completions", b"")


def test_models_pass(proxy_url: str, upstream: Upstream) -> None:
    """Models are listed by the upstream; a model's name may hold a colon."""
    assert ask(proxy_url, "/v1/models").json["data"][0]["id"] == "m"
    assert ask(proxy_url, "/v1/models/qwen3:4b").status == 200
    assert [seen.path for seen in upstream.requests] == [b"/v1/models", b"/v1/models/qwen3:4b"]


def test_connection_is_used_again(proxy_url: str, upstream: Upstream) -> None:
    """Requests one after the other share a connection to the upstream, streams too."""
    for stream in (False, True, False):
        ask(proxy_url, CHAT, {**HELLO, "stream": stream})
    assert len({seen.client for seen in upstream.requests}) == 1


def test_verdict_headers(proxy_url: str) -> None:
    """An allowed answer says so and has an id; it holds no score."""
    got = ask(proxy_url, CHAT, HELLO)
    assert got.header("x-guardrail-action") == "allow"
    assert len(got.header("x-guardrail-request-id") or "") == 32
    assert {name for name, _ in got.headers if "guardrail" in name} == {"x-guardrail-action", "x-guardrail-request-id"}
