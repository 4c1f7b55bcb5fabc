"""A guard as an input guardrail of the OpenAI Agents SDK: a refused turn trips it before the agent's model is asked.

pip install topic-guardrail openai-agents
python examples/agents_input_guardrail.py guardrail.yaml "Who is Spock?"
"""

from __future__ import annotations

import asyncio
import sys
from typing import Any

from agents import (
    Agent,
    GuardrailFunctionOutput,
    InputGuardrail,
    InputGuardrailTripwireTriggered,
    RunContextWrapper,
    Runner,
    TResponseInputItem,
)

from guardrail import Guard


def topic_guardrail(guard: Guard) -> InputGuardrail[Any]:
    """An input guardrail by a guard; `output_info` is the `Decision`."""

    async def judge(
        context: RunContextWrapper[Any], agent: Agent[Any], said: str | list[TResponseInputItem]
    ) -> GuardrailFunctionOutput:
        items = said if isinstance(said, str) else [dict(item) for item in said if "role" in item]
        decision = await guard.acheck(items)
        return GuardrailFunctionOutput(output_info=decision, tripwire_triggered=not decision.allowed)

    # In parallel the model would be asked, and paid for, while the guard still thinks.
    return InputGuardrail(guardrail_function=judge, name="topic", run_in_parallel=False)


async def answer(agent: Agent[Any], said: str | list[TResponseInputItem]) -> str:
    """The agent's answer, or the refusal."""
    try:
        return str((await Runner.run(agent, said)).final_output)
    except InputGuardrailTripwireTriggered as refused:
        return str(refused.guardrail_result.output.output_info.reply)


async def main() -> None:
    with Guard.from_file(sys.argv[1]) as guard:
        agent = Agent(name="Spock", instructions="You are Spock.", input_guardrails=[topic_guardrail(guard)])
        print(await answer(agent, sys.argv[2]))


if __name__ == "__main__":
    asyncio.run(main())
