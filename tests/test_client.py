"""A guarded OpenAI client stays an OpenAI client; what is refused never leaves the process, whatever way it was asked."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any

import pytest
from openai import AsyncOpenAI, OpenAI
from openai.types import Completion
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from openai.types.responses import Response
from openai_server import ANSWER, OpenAIServer, openai_server
from pydantic import BaseModel

from guardrail import Guard, Policy, Refused
from guardrail.client import UnguardedError, guard_openai
from guardrail.errors import UnreadableError
from guardrail.policy import Action, Do, Facts, Rule
from guardrail.testing import FixedScorer

NO = "Only star trek."


class Person(BaseModel):
    name: str


@pytest.fixture(scope="module")
def _server() -> Iterator[OpenAIServer]:
    with openai_server() as server:
        yield server


@pytest.fixture
def server(_server: OpenAIServer) -> OpenAIServer:
    """The server, with nothing recorded."""
    _server.bodies.clear()
    return _server


@pytest.fixture
def guard() -> Guard:
    scorer = FixedScorer(star_trek=lambda turn: 0.01 if "tax" in turn.text else 0.99)
    route = Rule("route", Do(Action.ROUTE, "large"), text_longer_than=100)
    return Guard(scorer, Policy(allow=("star_trek",), replies=("Only {topic}.",), rules=(route,)))


@pytest.fixture
def client(server: OpenAIServer, guard: Guard) -> Iterator[OpenAI]:
    with OpenAI(api_key="k", base_url=server.url, max_retries=0) as plain:
        yield guard_openai(plain, guard)


@pytest.fixture
async def async_client(server: OpenAIServer, guard: Guard) -> AsyncIterator[AsyncOpenAI]:
    async with AsyncOpenAI(api_key="k", base_url=server.url, max_retries=0) as plain:
        yield guard_openai(plain, guard)


def say(text: str) -> list[Any]:
    return [{"role": "system", "content": "You are Spock."}, {"role": "user", "content": text}]


def chat_text(answer: Any) -> str:
    assert type(answer) is ChatCompletion
    assert answer.choices[0].finish_reason == "stop"
    return str(answer.choices[0].message.content)


def chunk_text(chunks: Any) -> str:
    pieces = list(chunks)
    assert all(type(piece) is ChatCompletionChunk for piece in pieces)
    assert pieces[-1].choices[0].finish_reason == "stop"
    return "".join(piece.choices[0].delta.content or "" for piece in pieces)


def streamed_chat(client: OpenAI, text: str) -> str:
    with client.chat.completions.stream(model="m", messages=say(text)) as stream:
        kinds = [event.type for event in stream]
        final = stream.get_final_completion()
    assert "content.delta" in kinds
    return str(final.choices[0].message.content)


def completion_text(answer: Any) -> str:
    assert type(answer) is Completion
    return str(answer.choices[0].text)


def response_text(answer: Any) -> str:
    assert isinstance(answer, Response)
    assert answer.status == "completed"
    return answer.output_text


def streamed_response(client: OpenAI, text: str) -> str:
    with client.responses.stream(model="m", input=text) as stream:
        for _ in stream:
            pass
        return stream.get_final_response().output_text


SYNC: dict[str, Callable[[OpenAI, str], str]] = {
    "chat": lambda c, text: chat_text(c.chat.completions.create(model="m", messages=say(text))),
    "chat chunks": lambda c, text: chunk_text(c.chat.completions.create(model="m", messages=say(text), stream=True)),
    "chat stream": streamed_chat,
    "chat raw": lambda c, text: chat_text(c.chat.completions.with_raw_response.create(model="m", messages=say(text)).parse()),
    "chat raw chunks": lambda c, text: chunk_text(
        c.chat.completions.with_raw_response.create(model="m", messages=say(text), stream=True).parse()
    ),
    "chat with options": lambda c, text: chat_text(
        c.with_options(timeout=5).chat.completions.create(model="m", messages=say(text))
    ),
    "chat copy of a copy": lambda c, text: chat_text(
        c.copy().with_options(max_retries=1).chat.completions.create(model="m", messages=say(text))
    ),
    "chat in extra_body": lambda c, text: chat_text(
        c.chat.completions.create(model="m", messages=say("Spock"), extra_body={"messages": say(text)})
    ),
    "completions": lambda c, text: completion_text(c.completions.create(model="m", prompt=text)),
    "completions list": lambda c, text: completion_text(c.completions.create(model="m", prompt=["Spock", text])),
    "completions stream": lambda c, text: "".join(
        completion_text(piece) for piece in c.completions.create(model="m", prompt=text, stream=True)
    ),
    "responses": lambda c, text: response_text(c.responses.create(model="m", input=text)),
    "responses items": lambda c, text: response_text(c.responses.create(model="m", input=say(text))),
    "responses raw": lambda c, text: response_text(c.responses.with_raw_response.create(model="m", input=text).parse()),
    "responses events": lambda c, text: response_text(
        list(c.responses.create(model="m", input=text, stream=True))[-1].response  # type: ignore[union-attr]
    ),
    "responses stream": streamed_response,
}


@pytest.mark.parametrize("way", SYNC)
def test_each_way(client: OpenAI, server: OpenAIServer, way: str) -> None:
    """An allowed call is one request; a refused one is none, and its answer has the type of the real one."""
    assert SYNC[way](client, "Spock?") == ANSWER
    assert len(server.bodies) == 1
    assert SYNC[way](client, "do my tax") == NO
    assert len(server.bodies) == 1


async def _chunks(client: AsyncOpenAI, text: str) -> str:
    stream = await client.chat.completions.create(model="m", messages=say(text), stream=True)
    return chunk_text([piece async for piece in stream])


async def _stream(client: AsyncOpenAI, text: str) -> str:
    async with client.chat.completions.stream(model="m", messages=say(text)) as stream:
        return str((await stream.get_final_completion()).choices[0].message.content)


async def _response_stream(client: AsyncOpenAI, text: str) -> str:
    async with client.responses.stream(model="m", input=text) as stream:
        return (await stream.get_final_response()).output_text


async def _chat(client: AsyncOpenAI, text: str) -> str:
    return chat_text(await client.with_options(timeout=5).chat.completions.create(model="m", messages=say(text)))


async def _raw(client: AsyncOpenAI, text: str) -> str:
    return chat_text((await client.chat.completions.with_raw_response.create(model="m", messages=say(text))).parse())


async def _completion(client: AsyncOpenAI, text: str) -> str:
    return completion_text(await client.completions.create(model="m", prompt=text))


async def _response(client: AsyncOpenAI, text: str) -> str:
    return response_text(await client.responses.create(model="m", input=text))


@pytest.mark.parametrize("way", [_chat, _raw, _chunks, _stream, _completion, _response, _response_stream])
async def test_each_async_way(
    async_client: AsyncOpenAI, server: OpenAIServer, way: Callable[[AsyncOpenAI, str], Awaitable[str]]
) -> None:
    """The same for the asynchronous client."""
    assert await way(async_client, "Spock?") == ANSWER
    assert await way(async_client, "do my tax") == NO
    assert len(server.bodies) == 1


def test_structured_output(client: OpenAI, server: OpenAIServer) -> None:
    """Where the caller parses the answer, the refusal comes as a refusal, which `parse` does not try to parse."""
    chat = client.chat.completions.parse(model="m", messages=say("Spock?"), response_format=Person)
    assert chat.choices[0].message.parsed == Person(name="Spock")
    no = client.chat.completions.parse(model="m", messages=say("tax"), response_format=Person).choices[0].message
    assert (no.parsed, no.refusal, no.content) == (None, NO, None)
    assert client.responses.parse(model="m", input="Spock?", text_format=Person).output_parsed == Person(name="Spock")
    response = client.responses.parse(model="m", input="tax", text_format=Person)
    assert response.output_parsed is None
    assert [part.type for item in response.output for part in item.content] == ["refusal"]  # type: ignore[union-attr]
    assert len(server.bodies) == 2


def test_it_stays_the_same_client(client: OpenAI, server: OpenAIServer, guard: Guard) -> None:
    """Class, key and address stay; the client that was given is not guarded."""
    assert isinstance(client, OpenAI)
    assert client.api_key == "k"
    plain = OpenAI(api_key="k", base_url=server.url, max_retries=0)
    guard_openai(plain, guard)
    assert chat_text(plain.chat.completions.create(model="m", messages=say("tax"))) == ANSWER
    plain.close()


def test_a_refusal_shows_in_the_raw_response(client: OpenAI) -> None:
    """A caller that looks at headers can tell a refusal from an answer."""
    raw = client.chat.completions.with_raw_response.create(model="m", messages=say("tax"))
    assert (raw.status_code, raw.headers["x-guardrail-action"]) == (200, "refuse")
    assert raw.elapsed.total_seconds() >= 0


def test_as_many_choices_as_asked_for(client: OpenAI) -> None:
    """`n` choices, and the usage at a stream's end when it was asked for."""
    assert len(client.chat.completions.create(model="m", messages=say("tax"), n=3).choices) == 3
    chunks = list(
        client.chat.completions.create(model="m", messages=say("tax"), stream=True, n=2, stream_options={"include_usage": True})
    )
    assert {choice.index for chunk in chunks for choice in chunk.choices} == {0, 1}
    assert chunks[-1].usage is not None


def test_refused_turns_are_not_sent(client: OpenAI, server: OpenAIServer) -> None:
    """A refused turn and its reply are left out of what the server sees later."""
    first = say("do my tax")
    answer = client.chat.completions.create(model="m", messages=first).choices[0].message
    later = [*first, answer, {"role": "user", "content": "Spock?"}]
    client.chat.completions.create(model="m", messages=later)
    client.responses.create(model="m", input=[item if isinstance(item, dict) else item.to_dict() for item in later])
    assert [[m["content"] for m in server.bodies[0]["messages"]]] == [["You are Spock.", "Spock?"]]
    assert [m["content"] for m in server.bodies[1]["input"]] == ["You are Spock.", "Spock?"]


def test_a_refused_response_is_no_previous_one(client: OpenAI, server: OpenAIServer) -> None:
    """After a refusal the conversation goes on from the last response that the server made."""
    refused = client.responses.create(model="m", input="tax", previous_response_id="resp_1")
    again = client.responses.create(model="m", input="tax", previous_response_id=refused.id)
    client.responses.create(model="m", input="Spock?", previous_response_id=again.id)
    first = client.responses.create(model="m", input="tax")
    client.responses.create(model="m", input="Spock?", previous_response_id=first.id)
    assert [body.get("previous_response_id") for body in server.bodies] == ["resp_1", None]


def test_raise(server: OpenAIServer, guard: Guard) -> None:
    """`on_refuse="raise"` raises before anything is sent."""
    with OpenAI(api_key="k", base_url=server.url) as plain:
        client = guard_openai(plain, guard, on_refuse="raise")
        with pytest.raises(Refused, match="none of the allowed"):
            client.responses.create(model="m", input="tax")
    assert server.bodies == []


def test_routes(client: OpenAI, server: OpenAIServer, guard: Guard) -> None:
    """A routed call goes to the client of that name, any other to its own."""
    with openai_server() as large, OpenAI(api_key="k", base_url=large.url) as other:
        routed = guard_openai(client, guard, routes={"large": other})
        assert SYNC["chat"](routed, "Spock " * 50) == ANSWER
        assert (len(large.bodies), len(server.bodies)) == (1, 0)
        assert SYNC["chat"](client, "Spock " * 50) == ANSWER
        assert (len(large.bodies), len(server.bodies)) == (1, 1)


def test_the_model_is_a_fact(server: OpenAIServer) -> None:
    """Rules on the model and the endpoint hold for a client's calls."""
    facts = Facts({"model": ("big-*",), "endpoint": ("/v1/responses",)})
    rule = Rule("no big models", Do(Action.REFUSE, replies=("Too big.",)), facts=facts)
    guard = Guard(FixedScorer(star_trek=0.99), Policy(allow=("star_trek",), rules=(rule,)))
    with OpenAI(api_key="k", base_url=server.url) as plain:
        client = guard_openai(plain, guard)
        assert client.responses.create(model="big-1", input="Spock").output_text == "Too big."
        assert client.responses.create(model="small", input="Spock").output_text == ANSWER


@pytest.mark.parametrize(
    ("call", "error"),
    [
        (lambda c: c.completions.create(model="m", prompt=[1, 2, 3]), UnreadableError),
        (lambda c: c.responses.create(model="m", input=[{"type": "item_reference", "id": "x"}]), UnreadableError),
        (
            lambda c: c.chat.completions.create(model="m", messages=[{"role": "user", "content": [{"type": "image_url"}]}]),
            UnreadableError,
        ),
        (lambda c: c.batches.create(completion_window="24h", endpoint="/v1/responses", input_file_id="f"), UnguardedError),
        (lambda c: c.conversations.create(items=[]), UnguardedError),
        (lambda c: c.realtime, UnguardedError),
    ],
)
def test_what_cannot_be_judged(
    client: OpenAI, server: OpenAIServer, call: Callable[[OpenAI], Any], error: type[Exception]
) -> None:
    """It is an error, never a request."""
    with pytest.raises(error):
        call(client)
    assert server.bodies == []


def test_variables_of_a_stored_prompt_are_judged(client: OpenAI, server: OpenAIServer) -> None:
    """Text that the server will put into a stored prompt is the user's text too."""
    prompt: Any = {"id": "p", "variables": {"task": {"type": "input_text", "text": "do my tax"}}}
    assert client.responses.create(model="m", prompt=prompt).output_text == NO
    assert server.bodies == []


def test_not_a_client(guard: Guard) -> None:
    """A mistake is told at once."""
    with pytest.raises(TypeError, match="OpenAI client"):
        guard_openai(object(), guard)
    with pytest.raises(ValueError, match="on_refuse"):
        guard_openai(OpenAI(api_key="k"), guard, on_refuse="rais")  # type: ignore[arg-type]
