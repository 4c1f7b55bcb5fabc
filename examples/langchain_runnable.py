"""A guard in a LangChain chain: refused turns are answered without the model, the others go on to it.

pip install topic-guardrail langchain-openai
python examples/langchain_runnable.py guardrail.yaml "Who is Spock?"
"""

from __future__ import annotations

import sys
from typing import Any

from langchain_core.messages import AIMessage, BaseMessage, convert_to_messages, convert_to_openai_messages
from langchain_core.runnables import Runnable, RunnableConfig

from guardrail import Guard
from guardrail.judging import Judgement


class Guarded(Runnable[Any, BaseMessage]):
    """Any chat model or chain that takes messages, behind a guard; sync, async and streamed."""

    def __init__(self, model: Runnable[Any, BaseMessage], guard: Guard) -> None:
        self.model = model
        self.guard = guard

    def invoke(self, input: Any, config: RunnableConfig | None = None, **kwargs: Any) -> BaseMessage:
        messages = _messages(input)
        judgement = self.guard.judge(_as_dicts(messages))
        if not judgement.decision.allowed:
            return AIMessage(judgement.decision.reply)
        return self.model.invoke(_kept(messages, judgement), config, **kwargs)

    async def ainvoke(self, input: Any, config: RunnableConfig | None = None, **kwargs: Any) -> BaseMessage:
        messages = _messages(input)
        judgement = await self.guard.ajudge(_as_dicts(messages))
        if not judgement.decision.allowed:
            return AIMessage(judgement.decision.reply)
        return await self.model.ainvoke(_kept(messages, judgement), config, **kwargs)


def _messages(given: Any) -> list[BaseMessage]:
    if isinstance(given, str):
        given = [("user", given)]
    return convert_to_messages(given.to_messages() if hasattr(given, "to_messages") else given)


def _as_dicts(messages: list[BaseMessage]) -> list[dict[str, Any]]:
    found = convert_to_openai_messages(messages)
    return found if isinstance(found, list) else [found]


def _kept(messages: list[BaseMessage], judgement: Judgement) -> list[BaseMessage]:
    """Without the turns that were refused before, and their replies."""
    return [message for place, message in enumerate(messages) if place not in judgement.dropped]


def main() -> None:
    from langchain_openai import ChatOpenAI

    with Guard.from_file(sys.argv[1]) as guard:
        print(Guarded(ChatOpenAI(), guard).invoke(sys.argv[2]).content)


if __name__ == "__main__":
    main()
