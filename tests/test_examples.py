"""The examples run: each with the real package where that is installed, the guard goes by words."""

from __future__ import annotations

import ast
import importlib.util
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from guardrail import Guard, Policy
from guardrail.testing import FixedScorer

EXAMPLES = Path(__file__).parent.parent / "examples"
NO = "Only star trek."
HISTORY = [{"role": "user", "content": "bread"}, {"role": "assistant", "content": NO}]


@pytest.fixture
def guard() -> Guard:
    scorer = FixedScorer(star_trek=lambda turn: 0.99 if "Spock" in turn.text else 0.01)
    return Guard(scorer, Policy(allow=("star_trek",), replies=("Only {topic}.",)))


def example(name: str, needs: str) -> ModuleType:
    """An example as a module; the test is skipped where its package is not installed."""
    pytest.importorskip(needs, exc_type=ImportError)
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


async def test_langchain(guard: Guard) -> None:
    """A refused turn does not reach the model; an allowed one does, without the refused turns before it."""
    module = example("langchain_runnable", "langchain_core")
    from langchain_core.messages import AIMessage
    from langchain_core.prompts import ChatPromptTemplate
    from langchain_core.runnables import RunnableLambda

    asked: list[Any] = []

    def model(messages: list[Any]) -> AIMessage:
        asked.append([message.content for message in messages])
        return AIMessage("Fascinating.")

    chain = module.Guarded(RunnableLambda(model), guard)
    assert [chain.invoke(text).content for text in ("Spock?", "bread")] == ["Fascinating.", NO]
    assert [(await chain.ainvoke(text)).content for text in ("Spock?", "bread")] == ["Fascinating.", NO]
    assert chain.invoke([*HISTORY, {"role": "user", "content": "Spock?"}]).content == "Fascinating."
    prompt = ChatPromptTemplate.from_messages([("system", "You are a Vulcan."), ("user", "{text}")])
    assert [piece.content for piece in (prompt | chain).stream({"text": "bread"})] == [NO]
    assert asked == [["Spock?"]] * 3


def test_fastapi(guard: Guard) -> None:
    """The endpoint is reached by allowed messages only; what cannot be read is a 400."""
    module = example("fastapi_dependency", "fastapi")
    from proxy.servers import ask, running

    asked: list[Any] = []

    def answer(messages: list[Any]) -> str:
        asked.append([message["content"] for message in messages])
        return "Fascinating."

    with running(module.create_app(guard, answer)) as url:
        replies = [ask(url, "/chat", {"messages": [*HISTORY, {"role": "user", "content": t}]}).json for t in ("Spock?", "bread")]
        bad = ask(url, "/chat", {"messages": [{"role": "wizard", "content": "Spock"}]})
    assert replies == [{"answer": "Fascinating.", "refused": False}, {"answer": NO, "refused": True}]
    assert (bad.status, bad.json["param"]) == (400, "messages[0].role")
    assert asked == [["Spock?"]]


async def test_agents(guard: Guard) -> None:
    """The guardrail trips before the model is asked."""
    module = example("agents_input_guardrail", "agents")
    from agents import Agent, ModelResponse, Usage, set_tracing_disabled
    from agents.models.interface import Model
    from openai.types.responses import ResponseOutputMessage, ResponseOutputText

    asked: list[Any] = []

    class Logical(Model):
        async def get_response(self, system_instructions: Any, input: Any, *args: Any, **kwargs: Any) -> ModelResponse:
            asked.append(input)
            text = ResponseOutputText(type="output_text", text="Fascinating.", annotations=[])
            message = ResponseOutputMessage(id="1", type="message", role="assistant", status="completed", content=[text])
            return ModelResponse(output=[message], usage=Usage(), response_id=None)

        def stream_response(self, *args: Any, **kwargs: Any) -> Any:
            raise NotImplementedError

    set_tracing_disabled(True)
    agent = Agent(name="Spock", model=Logical(), input_guardrails=[module.topic_guardrail(guard)])
    assert [await module.answer(agent, text) for text in ("Spock?", "bread")] == ["Fascinating.", NO]
    assert await module.answer(agent, [*HISTORY, {"role": "user", "content": "Spock?"}]) == "Fascinating."
    assert len(asked) == 2


def test_gradio(guard: Guard) -> None:
    """The chat function streams what it answers, or the refusal; Gradio takes it."""
    module = example("gradio_chat", "gradio")

    def answer(message: str) -> Iterator[str]:
        yield from ("Fasci", "nating.")

    chat = module.guarded_chat(guard, answer)
    history = [{**turn, "content": [{"type": "text", "text": turn["content"]}], "metadata": None} for turn in HISTORY]
    assert [list(chat(text, history)) for text in ("Spock?", "bread")] == [["Fasci", "Fascinating."], [NO]]
    assert module.create_demo(guard, answer).fn is not None


def test_each_example_is_tested() -> None:
    """A new example comes with a test."""
    here = ast.parse(Path(__file__).read_text(encoding="utf-8"))
    named = {node.value for node in ast.walk(here) if isinstance(node, ast.Constant) and isinstance(node.value, str)}
    assert {path.stem for path in EXAMPLES.glob("*.py")} <= named
