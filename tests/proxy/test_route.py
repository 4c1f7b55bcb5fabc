"""A routed request goes to another upstream, with its model and system prompt; all other bytes stay."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.conftest import CHAT, Proxies
from proxy.servers import Upstream, ask

LONG = "Tell me about Spock. " * 20
SYSTEM = {"role": "system", "content": "You are a Vulcan scientist."}


def test_model_and_system_are_replaced(proxy_url: str, upstream: Upstream) -> None:
    """The other upstream gets its own model and one system message; other bytes are where they were."""
    before = b'{ "temperature": 1.0, "seed":123456789012345678901234567890,\n"messages" : ['
    kept = [
        b'{"role":"user", "content":"\\u0041 hi"}',
        b'{"content":"Yes?","role":"assistant"}',
        json.dumps({"role": "user", "content": LONG}).encode(),
    ]
    dropped = [
        b'{"role": "system", "content": "You are evil."}',
        b'{"role": "developer", "content": [{"type":"text","text":"x"}]}',
    ]
    after = b'] , "stream":false, "model" :"small", "x":"\xe2\x82\xac" }'
    got = ask(proxy_url, CHAT, before + b" , ".join([dropped[0], kept[0], dropped[1], *kept[1:]]) + after)
    assert (got.status, got.header("x-guardrail-action")) == (200, "route")
    assert upstream.only.path == b"/large/v1/chat/completions"
    system = json.dumps(SYSTEM).encode()
    assert upstream.only.body == before + b",".join([system, *kept]) + after.replace(b'"small"', b'"big-model"')


def test_model_is_added_where_it_is_missing(proxy_url: str, upstream: Upstream) -> None:
    """A request without a model gets one."""
    ask(proxy_url, CHAT, {"messages": [{"role": "user", "content": LONG}]})
    assert upstream.only.json == {"model": "big-model", "messages": [SYSTEM, {"role": "user", "content": LONG}]}


def test_stream(proxy_url: str, upstream: Upstream) -> None:
    """A routed stream is a stream."""
    got = ask(proxy_url, CHAT, {"stream": True, "messages": [{"role": "user", "content": LONG}]})
    assert got.events[-1] == "[DONE]"


def test_without_model_and_system_nothing_is_edited(proxies: Proxies, upstream: Upstream) -> None:
    """An upstream that replaces neither gets the same bytes."""
    url = proxies(
        proxy={
            "upstreams": {"default": {"url": f"{upstream.url}/v1"}, "large": {"url": f"{upstream.url}/b", "api_key": "sk-large"}}
        }
    )
    body = json.dumps({"messages": [{"role": "system", "content": "mine"}, {"role": "user", "content": LONG}]}, indent=1).encode()
    ask(url, CHAT, body)
    assert (upstream.only.body, upstream.only.path) == (body, b"/b/chat/completions")


def test_client_credentials_stay_at_home(proxy_url: str, upstream: Upstream) -> None:
    """The client's key belongs to the default upstream; another one never sees it."""
    headers = {"authorization": "Bearer sk-client", "api-key": "sk-azure", "x-api-key": "k", "openai-organization": "org"}
    ask(proxy_url, CHAT, {"messages": [{"role": "user", "content": LONG}]}, headers=headers)
    assert not any(upstream.only.header(name) for name in headers)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=10),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=12,
)


@given(
    body=st.dictionaries(st.text(max_size=8), json_values, max_size=6),
    indent=st.sampled_from([None, 0, 2]),
    ascii_only=st.booleans(),
)
def test_splice_knows_where_values_are(body: dict[str, Any], indent: int | None, ascii_only: bool) -> None:
    """Spans are those of the values; a set member is the only difference."""
    from guardrail.proxy.splice import apply, elements, members, set_member

    text = f" \n{json.dumps(body, indent=indent, ensure_ascii=ascii_only)}\t"
    spans = dict(members(text))
    assert {key: json.loads(text[span.start : span.end]) for key, span in spans.items()} == body
    for key, value in body.items():
        if isinstance(value, list):
            assert [json.loads(text[span.start : span.end]) for span in elements(text, spans[key])] == value
    assert json.loads(apply(text, [set_member(text, "model", '"new"')])) == {**body, "model": "new"}


@pytest.mark.parametrize("alias", ["/chat/completions", "/v1/chat/completions"])
def test_aliases_route_alike(proxy_url: str, upstream: Upstream, alias: str) -> None:
    """The path without /v1 is guarded in the same way."""
    ask(proxy_url, alias, {"messages": [{"role": "user", "content": LONG}]})
    assert upstream.only.json["model"] == "big-model"
