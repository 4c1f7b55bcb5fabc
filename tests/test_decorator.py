"""`@guarded` keeps signature and types, judges before the function runs, and answers in the function's own shape."""

from __future__ import annotations

import functools
import inspect
import subprocess
import sys
from collections.abc import AsyncIterator, Generator, Iterator
from pathlib import Path
from typing import Any

import pytest
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from pydantic import BaseModel

from guardrail import Action, Guard, Policy, Refused, guarded
from guardrail.errors import UnreadableError
from guardrail.policy import Do, Rule
from guardrail.testing import FixedScorer

NO = "Only star trek."


@pytest.fixture
def guard() -> Guard:
    scorer = FixedScorer(star_trek=lambda turn: 0.99 if "Spock" in turn.text else 0.01)
    return Guard(scorer, Policy(allow=("star_trek",), replies=("Only {topic}.",)))


def test_sync(guard: Guard) -> None:
    """A refused call does not reach the function."""
    calls = []

    @guarded(guard)
    def chat(message: str, loud: bool = False) -> str:
        """Talk."""
        calls.append(message)
        return message.upper() if loud else message

    assert (chat("Spock", loud=True), chat(message="bread")) == ("SPOCK", NO)
    assert calls == ["Spock"]
    assert (chat.__doc__, str(inspect.signature(chat))) == ("Talk.", "(message: 'str', loud: 'bool' = False) -> 'str'")
    assert chat.guard is guard  # type: ignore[attr-defined]


async def test_async(guard: Guard) -> None:
    """The same for a coroutine function."""

    @guarded(guard)
    async def chat(message: str) -> str:
        return f"re: {message}"

    assert (await chat("Spock"), await chat("bread")) == ("re: Spock", NO)
    assert inspect.iscoroutinefunction(chat)


def test_generator(guard: Guard) -> None:
    """A refused stream is one piece."""

    @guarded(guard)
    def stream(message: str) -> Iterator[str]:
        yield from message

    assert (list(stream("Spock")), list(stream("bread"))) == (list("Spock"), [NO])


async def test_async_generator(guard: Guard) -> None:
    """So is a refused asynchronous one."""

    @guarded(guard)
    async def stream(messages: list[dict[str, str]]) -> AsyncIterator[dict[str, str]]:
        yield messages[-1]

    said = [{"role": "user", "content": "bread"}]
    assert [piece async for piece in stream(said)] == [{"role": "assistant", "content": NO}]
    said[0]["content"] = "Spock"
    assert [piece async for piece in stream(said)] == said


def test_shapes(guard: Guard) -> None:
    """A message dict, an OpenAI completion, or whatever `reply` makes."""

    @guarded(guard)
    def message(messages: list[dict[str, str]]) -> dict[str, str]:
        return messages[-1]

    @guarded(guard)
    def completion(prompt: str) -> ChatCompletion:
        raise AssertionError("not reached")

    @guarded(guard, reply=lambda decision: (403, decision.reply))
    def pair(prompt: str) -> tuple[int, str]:
        return 200, prompt

    assert message([{"role": "user", "content": "bread"}]) == {"role": "assistant", "content": NO}
    answer = completion("bread")
    assert isinstance(answer, ChatCompletion)
    assert (answer.choices[0].message.content, answer.choices[0].finish_reason) == (NO, "stop")
    assert (pair("bread"), pair("Spock")) == ((403, NO), (200, "Spock"))


def test_raise(guard: Guard) -> None:
    """`on_refuse="raise"` gives the decision along."""

    @guarded(guard, on_refuse="raise")
    def chat(message: str) -> str:
        return message

    with pytest.raises(Refused) as caught:
        chat("bread")
    assert (caught.value.reply, caught.value.decision.rule) == (NO, "allow")


def test_which_parameter(guard: Guard) -> None:
    """By name if told, else a usual name, else the first after self."""

    class Bot:
        @guarded(guard)
        def answer(self, user: int, question: str) -> str:
            return question

        @guarded(guard, parameter="b")
        def other(self, a: str, b: str) -> str:
            return b

    assert (Bot().answer(1, "bread"), Bot().answer(1, "Spock")) == (NO, "Spock")
    assert (Bot().other("Spock", "bread"), Bot().other("bread", "Spock")) == (NO, "Spock")


@pytest.mark.parametrize(("function", "options"), [(lambda: 1, {}), (lambda **kw: kw, {}), (lambda a: a, {"parameter": "b"})])
def test_nothing_to_judge(guard: Guard, function: Any, options: dict[str, str]) -> None:
    """That is an error where the function is defined."""
    with pytest.raises(TypeError):
        guarded(guard, **options)(function)  # type: ignore[arg-type]


def test_a_wrong_option(guard: Guard) -> None:
    """A typo does not become a default."""
    with pytest.raises(ValueError, match="on_refuse"):
        guarded(guard, on_refuse="rais")  # type: ignore[arg-type]


def test_types_are_kept(tmp_path: Path) -> None:
    """A strict type checker sees the wrapped signature and return type."""
    source = Path(__file__).parent / "typing_decorator.py"
    command = [sys.executable, "-m", "mypy", "--strict", "--cache-dir", str(tmp_path), str(source)]
    result = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parent.parent)
    assert "Success" in result.stdout, result.stdout


class Asked(BaseModel):
    messages: list[dict[str, str]]
    loud: bool = False


class Note(BaseModel):
    question: str


def test_partials_and_callables(guard: Guard) -> None:
    """A partial, a bound method and an object that can be called are guarded like a function."""

    class Bot:
        def __call__(self, message: str) -> str:
            return f"called {message}"

        def answer(self, message: str) -> str:
            return f"bound {message}"

    def two(tone: str, message: str) -> dict[str, str]:
        return {"role": "assistant", "content": f"{tone} {message}"}

    part = guarded(guard)(functools.partial(two, "calm"))
    assert (part("Spock"), part("bread")) == (
        {"role": "assistant", "content": "calm Spock"},
        {"role": "assistant", "content": NO},
    )
    assert [guarded(guard)(Bot())(text) for text in ("Spock", "bread")] == ["called Spock", NO]
    assert [guarded(guard)(Bot().answer)(text) for text in ("Spock", "bread")] == ["bound Spock", NO]


async def test_asynchronous_callables(guard: Guard) -> None:
    """The kind of a callable or partial is that of the function inside."""

    class Bot:
        async def __call__(self, message: str) -> str:
            return f"called {message}"

    async def stream(tone: str, message: str) -> AsyncIterator[str]:
        yield f"{tone} {message}"

    bot, part = guarded(guard)(Bot()), guarded(guard)(functools.partial(stream, "calm"))
    assert [await bot("Spock"), await bot("bread")] == ["called Spock", NO]
    assert [piece async for piece in part("Spock")] == ["calm Spock"]
    assert [piece async for piece in part("bread")] == [NO]


def test_by_position(guard: Guard) -> None:
    """`parameter` may be a place; `self` does not count."""

    class Bot:
        @guarded(guard, parameter=1)
        def answer(self, message: str, other: str) -> str:
            return other

    assert Bot().answer("bread", "Spock") == "Spock"
    assert Bot().answer("Spock", other="bread") == NO
    with pytest.raises(TypeError, match="no parameter at place 2"):
        guarded(guard, parameter=2)(lambda a, b: a)


def test_models_and_mappings(guard: Guard) -> None:
    """Messages or a text in a pydantic model or a mapping are found by their usual names."""

    @guarded(guard)
    def chat(request: Asked) -> str:
        return request.messages[-1]["content"]

    @guarded(guard)
    def note(body: Note) -> str:
        return body.question

    @guarded(guard)
    def mapping(body: dict[str, Any]) -> str:
        return "passed"

    assert [chat(Asked(messages=[{"role": "user", "content": text}])) for text in ("Spock", "bread")] == ["Spock", NO]
    assert [note(Note(question=text)) for text in ("Spock", "bread")] == ["Spock", NO]
    assert [mapping({"prompt": text}) for text in ("Spock", "bread")] == ["passed", NO]
    assert mapping({"role": "user", "content": "bread"}) == NO
    with pytest.raises(UnreadableError, match="none of messages"):
        mapping({"other": "Spock"})
    with pytest.raises(UnreadableError, match="cannot judge int"):
        mapping(3)  # type: ignore[arg-type]


def test_refused_turns_do_not_reach_the_function(guard: Guard) -> None:
    """Neither in a list of messages nor in a model that holds one."""
    turns = ["bread", "Spock"]
    messages = [{"role": role, "content": text} for text in turns for role in ("user", "assistant")][:-1]

    @guarded(guard)
    def chat(messages: list[dict[str, str]]) -> str:
        return " ".join(message["content"] for message in messages)

    @guarded(guard)
    def model(asked: Asked) -> str:
        return f"{len(asked.messages)} {asked.loud}"

    @guarded(guard)
    def mapping(body: dict[str, Any]) -> str:
        return str(len(body["input"]))

    assert chat(messages) == "Spock"
    assert mapping({"input": messages}) == "1"
    assert model(Asked(messages=messages, loud=True)) == "1 True"
    assert len(messages) == 3


def test_history(guard: Guard) -> None:
    """`history` gives the conversation before, as messages or as texts; a refused turn in it is no context."""
    scorer = FixedScorer(star_trek=lambda turn: 0.99 if "Spock" in " ".join((*turn.context, turn.text)) else 0.01)
    follow = Guard(scorer, Policy(allow=("star_trek",), replies=("Only {topic}.",)))
    sessions: dict[str, list[Any]] = {
        "a": ["Spock?"],
        "b": [{"role": "user", "content": "Spock?"}, {"role": "assistant", "content": "x"}],
        "c": [],
        "d": ["bread"],
    }

    @guarded(follow, history=lambda session, message: sessions[session])
    def chat(session: str, message: str) -> str:
        return "passed"

    assert [chat(session, "and his father?") for session in "abcd"] == ["passed", "passed", NO, NO]
    assert scorer.turns[1].context == ("Spock?",)


async def test_asynchronous_history(guard: Guard) -> None:
    """A coroutine function may give it to an asynchronous one."""

    async def earlier(message: str) -> list[str]:
        return ["Spock?"]

    seen = FixedScorer(star_trek=0.9)

    @guarded(Guard(seen, Policy(allow=("star_trek",))), history=earlier)
    async def chat(message: str) -> str:
        return "passed"

    assert await chat("his father") == "passed"
    assert seen.turns[-1].context == ("Spock?",)


async def test_routes() -> None:
    """A routed call goes to the function of that name, with the same arguments; without one to the function itself."""
    rules = (Rule("r", Do(Action.ROUTE, "large"), text_longer_than=5),)
    guard = Guard(FixedScorer(star_trek=0.9), Policy(allow=("star_trek",), rules=rules))

    async def large(message: str, loud: bool = False) -> str:
        return f"large {message} {loud}"

    @guarded(guard, routes={"large": large})
    async def chat(message: str, loud: bool = False) -> str:
        return f"small {message}"

    @guarded(guard)
    def plain(message: str) -> str:
        return f"small {message}"

    assert [await chat("a"), await chat("abcdef", loud=True)] == ["small a", "large abcdef True"]
    assert plain("abcdef") == "small abcdef"


async def test_streams(guard: Guard) -> None:
    """A refused stream of chunks is a whole one, from a generator or from a function that gives back a stream."""

    @guarded(guard)
    def generator(message: str) -> Iterator[ChatCompletionChunk]:
        raise AssertionError("not reached")
        yield

    @guarded(guard)
    def function(message: str) -> Iterator[str]:
        return iter(["passed"])

    @guarded(guard)
    async def coroutine(message: str) -> AsyncIterator[str]:
        raise AssertionError("not reached")

    chunks = list(generator("bread"))
    assert [(chunk.choices[0].delta.content, chunk.choices[0].finish_reason) for chunk in chunks] == [(NO, None), (None, "stop")]
    assert [list(function(text)) for text in ("Spock", "bread")] == [["passed"], [NO]]
    assert [piece async for piece in await coroutine("bread")] == [NO]


def test_a_generator_keeps_its_return_value(guard: Guard) -> None:
    """`yield from` a guarded generator gives what the generator returned."""

    @guarded(guard)
    def stream(message: str) -> Generator[str, None, int]:
        yield message
        return 7

    def outer() -> Generator[str, None, None]:
        found.append((yield from stream("Spock")))

    found: list[int] = []
    assert (list(outer()), found) == (["Spock"], [7])
