"""What was refused once does not come back with the conversation."""

from __future__ import annotations

import json
from typing import Any

import pytest

from guardrail.chat import Turn
from guardrail.testing import FixedScorer
from proxy.conftest import CHAT, REFUSAL, Proxies, by_words
from proxy.servers import Upstream, ask


def user(text: Any) -> dict[str, Any]:
    return {"role": "user", "content": text}


def assistant(text: Any, **more: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": text, **more}


SYSTEM = {"role": "system", "content": "Be brief."}
SPOCK, TAX = user("Who is Spock?"), user("do my tax return")

CASES: dict[str, tuple[list[dict[str, Any]], list[int], tuple[str, ...]]] = {
    "one refusal": ([SYSTEM, TAX, assistant(REFUSAL), SPOCK], [0, 3], ()),
    "between others": (
        [SPOCK, assistant("A Vulcan."), TAX, assistant(REFUSAL), user("And Data?")],
        [0, 1, 4],
        ("Who is Spock?",),
    ),
    "a run of messages": ([TAX, user("please"), assistant(REFUSAL), SPOCK], [3], ()),
    "twice": ([TAX, assistant(REFUSAL), TAX, assistant(REFUSAL), SPOCK], [4], ()),
    "as parts": ([TAX, assistant([{"type": "text", "text": REFUSAL}]), SPOCK], [2], ()),
    "as refusal field": ([TAX, assistant(None, refusal=REFUSAL), SPOCK], [2], ()),
    "with spaces": ([TAX, assistant(f" {REFUSAL}\n"), SPOCK], [2], ()),
    "part of a longer reply": ([SPOCK, assistant(f"{REFUSAL} But...", refusal=None), SPOCK], [0, 1, 2], ("Who is Spock?",)),
    "nothing refused": ([SPOCK, assistant("A Vulcan."), SPOCK], [0, 1, 2], ("Who is Spock?",)),
}


@pytest.mark.parametrize(("messages", "kept", "context"), CASES.values(), ids=CASES.keys())
def test_refused_turns_are_dropped(
    proxies: Proxies, upstream: Upstream, messages: list[dict[str, Any]], kept: list[int], context: tuple[str, ...]
) -> None:
    """Neither the score's context nor the upstream gets them; every other byte stays."""
    scorer = FixedScorer(star_trek=by_words)
    texts = [json.dumps(message, indent=1) for message in messages]
    head, tail = '{"x":1.0, "messages" : ', ', "y" : "\u00e9"}'
    array = "[" + ",".join(texts) + "]"
    assert ask(proxies(scorer=scorer), CHAT, (head + array + tail).encode()).status == 200
    assert upstream.only.body.decode() == head + "[" + ",".join(texts[index] for index in kept) + "]" + tail
    assert scorer.turns[-1] == Turn(messages[-1]["content"], context)


def test_refused_turn_is_still_refused_when_asked_again(proxy_url: str, upstream: Upstream) -> None:
    """Only what a later user message has left behind is dropped."""
    for messages in ([TAX], [TAX, assistant(REFUSAL)], [SPOCK, assistant(REFUSAL), TAX]):
        got = ask(proxy_url, CHAT, {"messages": messages})
        assert got.json["choices"][0]["message"]["content"] == REFUSAL
    assert upstream.requests == []


def test_routed_conversation(proxy_url: str, upstream: Upstream) -> None:
    """Another upstream gets neither the refused turn nor the client's system prompt."""
    long = user("Spock " * 50)
    ask(proxy_url, CHAT, {"messages": [SYSTEM, TAX, assistant(REFUSAL), long], "model": "m"})
    assert upstream.only.json == {
        "messages": [{"role": "system", "content": "You are a Vulcan scientist."}, long],
        "model": "big-model",
    }
