"""A guarded Gradio chat: the decorator judges each message with the conversation that Gradio hands over.

pip install topic-guardrail gradio
python examples/gradio_chat.py guardrail.yaml
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from typing import Any

import gradio as gr

from guardrail import Guard, guarded

Answer = Callable[[str], Iterator[str]]


def guarded_chat(guard: Guard, answer: Answer) -> Callable[[str, list[Any]], Iterator[str]]:
    """A streamed chat function as Gradio wants it: what it yields is the whole answer so far."""

    @guarded(guard, parameter="message", history=lambda message, history: [_plain(turn) for turn in history])
    def chat(message: str, history: list[Any]) -> Iterator[str]:
        so_far = ""
        for piece in answer(message):
            so_far += piece
            yield so_far

    return chat


def _plain(turn: Any) -> dict[str, Any]:
    """A message of Gradio's history as an OpenAI message."""
    return {"role": turn["role"], "content": turn["content"]}


def create_demo(guard: Guard, answer: Answer) -> gr.ChatInterface:
    """The chat page."""
    return gr.ChatInterface(guarded_chat(guard, answer), title="On topic")


def main() -> None:
    with Guard.from_file(sys.argv[1]) as guard:
        create_demo(guard, lambda message: iter(["You ", "said: ", message])).launch()


if __name__ == "__main__":
    main()
