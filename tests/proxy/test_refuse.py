"""A refusal has the form that the request asked for, and no upstream hears of it."""

from __future__ import annotations

from typing import Any

import pytest

from proxy.conftest import CHAT, REFUSAL
from proxy.servers import Answer, Upstream, ask

TAX = {"model": "gpt-x", "messages": [{"role": "user", "content": "do my tax return"}]}
SCHEMA = {"type": "json_schema", "json_schema": {"name": "a", "schema": {"type": "object"}}}


def refused(url: str, upstream: Upstream, **changes: Any) -> Answer:
    got = ask(url, CHAT, {**TAX, **changes})
    assert got.status == 200
    assert got.header("x-guardrail-action") == "refuse"
    assert upstream.requests == []
    return got


def test_plain(proxy_url: str, upstream: Upstream) -> None:
    """It is a chat completion with the request's model and no tokens."""
    got = refused(proxy_url, upstream)
    body = got.json
    assert body["choices"] == [
        {
            "index": 0,
            "message": {"role": "assistant", "content": REFUSAL, "refusal": None},
            "logprobs": None,
            "finish_reason": "stop",
        }
    ]
    assert (body["object"], body["model"]) == ("chat.completion", "gpt-x")
    assert body["usage"] == {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}
    assert body["id"].startswith("chatcmpl-")
    assert isinstance(body["created"], int)
    assert got.header("content-type") == "application/json"
    assert got.header("date")


@pytest.mark.parametrize("number", [None, 1, 3])
def test_number_of_choices(proxy_url: str, upstream: Upstream, number: int | None) -> None:
    """`n` choices say the same, with indexes from 0, plain and streamed."""
    choices = refused(proxy_url, upstream, n=number).json["choices"]
    assert [choice["index"] for choice in choices] == list(range(number or 1))
    events = refused(proxy_url, upstream, n=number, stream=True).events[:-1]
    for index in range(number or 1):
        mine = [event["choices"][0] for event in events if event["choices"][0]["index"] == index]
        assert "".join(choice["delta"].get("content") or "" for choice in mine) == REFUSAL
        assert [choice["finish_reason"] for choice in mine] == [None, None, "stop"]


def test_stream(proxy_url: str, upstream: Upstream) -> None:
    """It is an event stream that ends with [DONE]; no event lacks a choice."""
    got = refused(proxy_url, upstream, stream=True)
    assert got.header("content-type") == "text/event-stream; charset=utf-8"
    *chunks, done = got.events
    assert done == "[DONE]"
    assert {chunk["object"] for chunk in chunks} == {"chat.completion.chunk"}
    assert len({chunk["id"] for chunk in chunks}) == 1
    assert chunks[0]["choices"][0]["delta"]["role"] == "assistant"
    assert all(len(chunk["choices"]) == 1 and "usage" not in chunk for chunk in chunks)


def test_stream_with_usage(proxy_url: str, upstream: Upstream) -> None:
    """Asked for, the usage is null in each chunk and zero in one more, which has no choices."""
    *chunks, usage, _ = refused(proxy_url, upstream, stream=True, stream_options={"include_usage": True}).events
    assert all(chunk["usage"] is None for chunk in chunks)
    assert (usage["choices"], usage["usage"]["total_tokens"]) == ([], 0)


@pytest.mark.parametrize("response_format", [SCHEMA, {"type": "json_object"}])
def test_structured(proxy_url: str, upstream: Upstream, response_format: Any) -> None:
    """Where the content would be parsed, the text is in the refusal field and the content is null."""
    message = refused(proxy_url, upstream, response_format=response_format).json["choices"][0]["message"]
    assert message == {"role": "assistant", "content": None, "refusal": REFUSAL}
    events = refused(proxy_url, upstream, response_format=response_format, stream=True).events[:-1]
    deltas = [event["choices"][0]["delta"] for event in events]
    assert "".join(delta.get("refusal") or "" for delta in deltas) == REFUSAL
    assert not any(delta.get("content") for delta in deltas)


def test_text_format_is_not_structured(proxy_url: str, upstream: Upstream) -> None:
    """`response_format: text` is the default, so the text is content."""
    assert refused(proxy_url, upstream, response_format={"type": "text"}).json["choices"][0]["message"]["content"] == REFUSAL


def test_no_tool_call_is_invented(proxy_url: str, upstream: Upstream) -> None:
    """A request that forces a tool gets text and no call."""
    tool = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
    choice = refused(proxy_url, upstream, tools=[tool], tool_choice="required").json["choices"][0]
    assert "tool_calls" not in choice["message"]
    assert choice["finish_reason"] == "stop"


@pytest.mark.parametrize("body", [{"n": 0}, {"n": 129}, {"n": True}, {"n": "2"}, {"stream": "true"}, {"stream": 1}])
def test_wrong_values_are_told(proxy_url: str, upstream: Upstream, body: dict[str, Any]) -> None:
    """A value that servers read in different ways is an error of the request, for allowed turns too."""
    for said in ("do my tax return", "Who is Spock?"):
        got = ask(proxy_url, CHAT, {**TAX, "messages": [{"role": "user", "content": said}], **body})
        assert (got.status, got.code, got.json["error"]["param"]) == (400, "invalid_value", next(iter(body)))
    assert upstream.requests == []


@pytest.mark.parametrize("messages", [None, [], "hello", {"role": "user"}])
def test_messages_are_needed(proxy_url: str, upstream: Upstream, messages: Any) -> None:
    """No messages, no verdict: 400."""
    got = ask(proxy_url, CHAT, {"model": "m", "messages": messages})
    assert (got.status, got.code, got.json["error"]["param"]) == (400, "invalid_value", "messages")
    assert upstream.requests == []


@pytest.mark.parametrize("stream", [False, True])
def test_failed_guard(proxy_url: str, upstream: Upstream, stream: bool) -> None:
    """A guard that cannot score lets nothing through: 503, come back in a second."""
    got = ask(proxy_url, CHAT, {"messages": [{"role": "user", "content": "fail"}], "stream": stream})
    assert (got.status, got.code, got.header("retry-after")) == (503, "guard_unavailable", "1")
    assert "dilithium" not in got.body.decode()
    assert upstream.requests == []


def test_full_queue(proxy_url: str, upstream: Upstream) -> None:
    """An overloaded guard says when to come back, in whole seconds and not too early."""
    got = ask(proxy_url, CHAT, {"messages": [{"role": "user", "content": "busy"}]})
    assert (got.status, got.code, got.header("retry-after")) == (503, "guard_unavailable", "3")
    assert upstream.requests == []


def test_failed_guard_may_be_ignored(proxies: Any, upstream: Upstream) -> None:
    """`on_error: allow` lets pass what could not be scored, by the operator's wish."""
    assert ask(proxies(on_error="allow"), CHAT, {"messages": [{"role": "user", "content": "fail"}]}).status == 200
    assert len(upstream.requests) == 1


def test_shadow(proxies: Any, upstream: Upstream) -> None:
    """In shadow mode everything passes."""
    got = ask(proxies(mode="shadow"), CHAT, TAX)
    assert (got.status, got.header("x-guardrail-action")) == (200, "allow")
    assert len(upstream.requests) == 1
