"""Whatever a request holds, it ends with an answer: 200, or 400 that says where; never with a fault of ours."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from proxy.conftest import CHAT
from proxy.servers import Upstream, ask

words = st.sampled_from(["", "user", "Spock", "tax", "Spock " * 50, "stream", "x"])
scalar = st.none() | st.booleans() | st.integers(-3, 300) | words
keys = st.text(max_size=3)
anything = st.recursive(
    scalar, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=3), max_leaves=6
)
CALL = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}
CODES = {
    *("invalid_value", "invalid_json", "unsupported_content", "unsupported_field", "token_prompts_not_supported"),
    *("stateful_not_supported", "unknown_previous_response"),
}

BODIES: dict[str, dict[str, Any]] = {
    CHAT: {
        "model": "m",
        "messages": [
            {"role": "system", "content": "x", "name": "n"},
            {"role": "user", "content": [{"type": "text", "text": "tax"}]},
            {"role": "assistant", "content": None, "tool_calls": [CALL]},
            {"role": "tool", "content": "x", "tool_call_id": "c"},
            {"role": "user", "content": "Spock"},
        ],
        "n": 2,
        "stream": True,
        "stream_options": {"include_usage": True},
        "response_format": {"type": "json_object"},
        "tools": [{"type": "function", "function": {"name": "f"}}],
        "chat_template_kwargs": {"x": 1},
    },
    "/v1/completions": {
        "model": "m",
        "prompt": ["tax", "Spock"],
        "suffix": "x",
        "n": 2,
        "stream": True,
        "stream_options": {"include_usage": True},
    },
    "/v1/responses": {
        "model": "m",
        "instructions": "x",
        "input": [
            {"role": "user", "content": [{"type": "input_text", "text": "tax"}]},
            {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "x"}]},
            {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"},
            {"type": "function_call_output", "call_id": "c", "output": "x"},
            {"role": "user", "content": "Spock"},
        ],
        "stream": True,
        "text": {"format": {"type": "json_schema"}},
        "previous_response_id": "resp_guardrail_x",
        "tools": [{"type": "function", "name": "f"}],
    },
}


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Paths to everything inside a value."""
    pairs = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [found for key, inner in pairs for found in ((*path, key), *places(inner, (*path, key)))]


@st.composite
def mutated(draw: st.DrawFn, body: dict[str, Any]) -> dict[str, Any]:
    """A good body in which some values are replaced or taken out."""
    changed = json.loads(json.dumps(body))
    for _ in range(draw(st.integers(1, 3))):
        *path, last = draw(st.sampled_from(places(changed) or [("x",)]))
        target = changed
        for key in path:
            target = target[key]
        if draw(st.booleans()) or not isinstance(target, dict):
            target[last] = draw(anything)
        else:
            del target[last]
    return changed


@pytest.mark.parametrize("path", BODIES)
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_every_body_has_its_answer(proxy_url: str, upstream: Upstream, path: str, data: st.DataObject) -> None:
    """Values of any kind at any place: an answer of the upstream, a refusal, or 400 with its place."""
    upstream.reset()
    body = data.draw(mutated(BODIES[path]))
    got = ask(proxy_url, path, json.dumps(body).encode())
    assert got.status in (200, 400), got.body
    if got.status == 400:
        assert got.code in CODES
    if got.status == 400 or got.header("x-guardrail-action") == "refuse":
        assert upstream.requests == []
    else:
        assert len(upstream.requests) == 1


@given(raw=st.binary(max_size=400))
@example(b"\x00" * 100)
@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_every_byte_string_has_its_answer(proxy_url: str, upstream: Upstream, raw: bytes) -> None:
    """Bytes that are hardly ever a request are 400."""
    assert ask(proxy_url, CHAT, raw).status == 400
    assert upstream.requests == []
