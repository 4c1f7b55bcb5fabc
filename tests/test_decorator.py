"""`@guarded` keeps signature and types, judges before the function runs, and answers in the function's own shape."""

from __future__ import annotations

import inspect
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from openai.types.chat import ChatCompletion

from guardrail import Guard, Policy, Refused, guarded
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
