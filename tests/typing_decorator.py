"""Checked by mypy in test_decorator.py, never run: what a type checker sees of a guarded function."""

from __future__ import annotations

from collections.abc import AsyncIterator, Coroutine
from typing import Any

from typing_extensions import assert_type

from guardrail import guarded


@guarded("guardrail.yaml")
def sync(message: str, loud: bool = False) -> str:
    return message


@guarded("guardrail.yaml", on_refuse="raise")
async def asynchronous(messages: list[dict[str, str]]) -> dict[str, str]:
    return messages[-1]


@guarded("guardrail.yaml")
async def stream(message: str) -> AsyncIterator[str]:
    yield message


class Bot:
    @guarded("guardrail.yaml")
    def answer(self, question: str) -> int:
        return len(question)


assert_type(sync("a", loud=True), str)
pending = assert_type(asynchronous([]), Coroutine[Any, Any, dict[str, str]])
assert_type(stream("a"), AsyncIterator[str])
assert_type(Bot().answer("a"), int)
sync(3)  # type: ignore[arg-type]
sync()  # type: ignore[call-arg]
