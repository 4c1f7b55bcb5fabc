"""The official client, sync and async, sees allowed answers as the upstream gave them and refusals as answers."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
from openai import APIConnectionError, APIError, APIStatusError, AsyncOpenAI, InternalServerError, OpenAI
from pydantic import BaseModel

from proxy.conftest import REFUSAL
from proxy.servers import Call, Upstream, chunk, raw_upstream

SPOCK: Any = [{"role": "user", "content": "Who is Spock?"}]
TAX: Any = [{"role": "user", "content": "do my tax return"}]
ANSWER = "Live long and prosper."


class Ship(BaseModel):
    name: str


@pytest.fixture
def client(proxy_url: str) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{proxy_url}/v1", api_key="sk-client", max_retries=0) as client:
        yield client


@pytest.fixture
async def async_client(proxy_url: str) -> AsyncIterator[AsyncOpenAI]:
    async with AsyncOpenAI(base_url=f"{proxy_url}/v1", api_key="sk-client", max_retries=0) as client:
        yield client


@pytest.mark.parametrize(("messages", "text"), [(SPOCK, ANSWER), (TAX, REFUSAL)])
class TestText:
    """Every way to ask gives the text: the upstream's, or the refusal."""

    def test_create(self, client: OpenAI, upstream: Upstream, messages: Any, text: str) -> None:
        assert client.chat.completions.create(model="m", messages=messages).choices[0].message.content == text
        assert len(upstream.requests) == (messages is SPOCK)

    def test_stream(self, client: OpenAI, upstream: Upstream, messages: Any, text: str) -> None:
        pieces = client.chat.completions.create(model="m", messages=messages, stream=True)
        assert "".join(piece.choices[0].delta.content or "" for piece in pieces) == text

    def test_stream_helper(self, client: OpenAI, upstream: Upstream, messages: Any, text: str) -> None:
        with client.chat.completions.stream(model="m", messages=messages) as stream:
            assert stream.get_final_completion().choices[0].message.content == text

    async def test_async_create(self, async_client: AsyncOpenAI, upstream: Upstream, messages: Any, text: str) -> None:
        got = await async_client.chat.completions.create(model="m", messages=messages)
        assert got.choices[0].message.content == text

    async def test_async_stream(self, async_client: AsyncOpenAI, upstream: Upstream, messages: Any, text: str) -> None:
        pieces = await async_client.chat.completions.create(model="m", messages=messages, stream=True)
        assert "".join([piece.choices[0].delta.content or "" async for piece in pieces]) == text


def test_parse(client: OpenAI, upstream: Upstream) -> None:
    """Structured output: nothing is parsed, and the message says that it was refused."""
    message = client.chat.completions.parse(model="m", messages=TAX, response_format=Ship).choices[0].message
    assert (message.parsed, message.refusal) == (None, REFUSAL)


def test_stream_helper_with_structure(client: OpenAI, upstream: Upstream) -> None:
    """The stream helper gives the refusal's events and ends well."""
    with client.chat.completions.stream(model="m", messages=TAX, response_format=Ship) as stream:
        kinds = [event.type for event in stream]
    assert "refusal.done" in kinds
    assert stream.get_final_completion().choices[0].message.refusal == REFUSAL


def test_usage_and_choices(client: OpenAI, upstream: Upstream) -> None:
    """The helper takes `n` and the usage chunk of a refusal."""
    with client.chat.completions.stream(model="m", messages=TAX, n=3, stream_options={"include_usage": True}) as stream:
        final = stream.get_final_completion()
    assert [choice.message.content for choice in final.choices] == [REFUSAL] * 3
    assert final.usage is not None
    assert final.usage.total_tokens == 0


def test_guard_error(client: OpenAI, upstream: Upstream) -> None:
    """A failed guard is a status error with our code, and the request can be found in the log."""
    with pytest.raises(InternalServerError) as caught:
        client.chat.completions.create(model="m", messages=[{"role": "user", "content": "fail"}])
    assert (caught.value.status_code, caught.value.code) == (503, "guard_unavailable")


def test_models(client: OpenAI, upstream: Upstream) -> None:
    """Models are listed and found; their names may hold a colon."""
    assert [model.id for model in client.models.list()] == ["m"]
    client.models.retrieve("qwen3:4b")
    assert upstream.requests[-1].path == b"/v1/models/qwen3:4b"


def test_blocked_endpoint(client: OpenAI, upstream: Upstream) -> None:
    """What the table lacks is told as a permission error, and the upstream hears nothing."""
    with pytest.raises(APIStatusError) as caught:
        client.embeddings.create(model="m", input="tax")
    assert (caught.value.status_code, caught.value.code) == (403, "endpoint_blocked")
    assert upstream.requests == []


async def broken(call: Call) -> None:
    """A stream whose connection closes in the middle."""
    await call.start(200, {"content-type": "text/event-stream"})
    await call.send(chunk({"role": "assistant", "content": "Live"}))


def test_broken_stream_is_an_error(client: OpenAI, upstream: Upstream) -> None:
    """A stream that the upstream broke off never looks like a whole one."""
    upstream.behaviour = broken
    pieces = client.chat.completions.create(model="m", messages=SPOCK, stream=True)
    with pytest.raises(APIError) as caught:
        list(pieces)
    assert caught.value.code == "upstream_disconnected"


def test_broken_stream_is_an_error_of_the_helper(client: OpenAI, upstream: Upstream) -> None:
    """The stream helper raises as well."""
    upstream.behaviour = broken
    with client.chat.completions.stream(model="m", messages=SPOCK) as stream, pytest.raises(APIError):
        stream.get_final_completion()


def test_stream_broken_inside_an_event_is_an_error(proxies: Any) -> None:
    """In the middle of an event nothing can be said any more, so the connection breaks."""
    head = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
    with (
        raw_upstream(lambda connection: connection.sendall(head + b'10\r\ndata: {"choices"\r\n')) as url,
        OpenAI(base_url=f"{proxies(url)}/v1", api_key="k", max_retries=0) as client,
        pytest.raises(APIConnectionError),
    ):
        list(client.chat.completions.create(model="m", messages=SPOCK, stream=True))


def test_broken_plain_answer_is_an_error(proxies: Any) -> None:
    """A plain answer that ends before its Content-Length is an error too."""
    head = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 100\r\n\r\n{"
    with (
        raw_upstream(lambda connection: connection.sendall(head)) as url,
        OpenAI(base_url=f"{proxies(url)}/v1", api_key="k", max_retries=0) as client,
        pytest.raises(APIConnectionError),
    ):
        client.chat.completions.create(model="m", messages=SPOCK)


def test_retry_after_is_obeyed(proxy_url: str, upstream: Upstream) -> None:
    """The client's own retry sees the upstream's Retry-After; the proxy adds no retry of its own."""

    async def first_busy(call: Call) -> None:
        if len(upstream.requests) == 1:
            await call.answer(429, b'{"error": {"message": "slow"}}', {"content-type": "application/json", "retry-after": "0.01"})
        else:
            await call.answer(200, b'{"id": "second", "choices": []}', {"content-type": "application/json"})

    upstream.behaviour = first_busy
    with OpenAI(base_url=f"{proxy_url}/v1", api_key="k", max_retries=1) as client:
        assert client.chat.completions.create(model="m", messages=SPOCK).id == "second"
    assert len(upstream.requests) == 2
