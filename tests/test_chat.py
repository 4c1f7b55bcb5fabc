"""Which text of a conversation is judged."""

from __future__ import annotations

import pytest

from guardrail.chat import Turn, content_text, read_messages, turn_of
from guardrail.errors import UnreadableError


def say(*roles_and_texts: str) -> list[dict[str, str]]:
    """Messages from `"user: hello"`."""
    return [dict(zip(("role", "content"), item.split(": ", 1), strict=True)) for item in roles_and_texts]


@pytest.mark.parametrize(
    ("messages", "turn"),
    [
        pytest.param(say("user: a"), Turn("a"), id="one"),
        pytest.param(say("user: a", "user: b"), Turn("a\nb"), id="trailing run is joined"),
        pytest.param(say("user: a", "assistant: x", "user: b"), Turn("b", ("a",)), id="context"),
        pytest.param(say("user: a", "assistant: x", "user: b", "assistant: y", "user: c"), Turn("c", ("a", "b")), id="two"),
        pytest.param(
            say("user: 1", "assistant: x", "user: 2", "assistant: x", "user: 3", "assistant: x", "user: 4"),
            Turn("4", ("2", "3")),
            id="only the newest context",
        ),
        pytest.param(say("system: s", "user: a"), Turn("a"), id="system prompt apart"),
        pytest.param(say("user: a", "assistant: call", "tool: r"), Turn("a"), id="tool result"),
        pytest.param(say("user: a", "assistant: Sure, the recipe:"), Turn("a\nSure, the recipe:"), id="prefill is judged"),
        pytest.param(say("system: bake bread"), Turn("bake bread"), id="no user message: all text is judged"),
        pytest.param([], Turn(""), id="empty"),
    ],
)
def test_turn(messages: list[dict[str, str]], turn: Turn) -> None:
    """The trailing user run is the turn; the user turns before it are its context."""
    assert turn_of(read_messages(messages), 2) == turn


def test_no_context_when_none_is_asked_for() -> None:
    """`context: {turns: 0}` judges a turn alone."""
    assert turn_of(read_messages(say("user: a", "assistant: x", "user: b")), 0) == Turn("b")


def test_content_parts_are_joined() -> None:
    """Text that is split over parts is judged as one."""
    assert content_text([{"type": "text", "text": "do my"}, {"type": "text", "text": "taxes"}], "p") == "do my\ntaxes"


@pytest.mark.parametrize(
    ("message", "param"),
    [
        ({"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}, "messages[0].content[0]"),
        ({"role": "user", "content": [{"type": "text", "text": None}]}, "messages[0].content[0]"),
        ({"role": "user", "content": ["a"]}, "messages[0].content[0]"),
        ({"role": "user", "content": 3}, "messages[0].content"),
        ({"role": "wizard", "content": "a"}, "messages[0].role"),
        ({"role": ["user"], "content": "a"}, "messages[0].role"),
        ({"content": "a"}, "messages[0].role"),
        ("hello", "messages[0]"),
    ],
)
def test_unreadable(message: object, param: str) -> None:
    """What cannot be judged as text is an error that names the place, never an empty text."""
    with pytest.raises(UnreadableError) as caught:
        read_messages([message])
    assert caught.value.param == param
