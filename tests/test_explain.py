"""`guardrail explain` tells the whole story of one decision, in words and as JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from guardrail import Guard, Policy
from guardrail.adapter import Base, Manifest, save_manifest
from guardrail.chat import Turn
from guardrail.cli import app
from guardrail.errors import ScoringError
from guardrail.scoring import Part
from guardrail.testing import FixedScorer

CONFIG = """\
topics: {trek: {adapter: ./trek, thresholds: {not_related: 0.2, related: 0.6}}}
allow: [trek]
refuse: Only {topic}.
rules:
  - {name: long, if: {trek: related, text_longer_than: 50}, do: route, to: large}
  - {name: odd, if: {trek: not_related}, do: flag}
policies: {next: {unsure: refuse}}
shadow: next
"""


class Windowed(FixedScorer):
    """A scorer that tells its windows."""

    def parts(self, turn: Turn) -> Sequence[Part]:
        return [Part("trek", "as written", word, 0.9 if word == "Spock" else 0.1) for word in turn.text.split()]


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "trek").mkdir()
    save_manifest(tmp_path / "trek", Manifest(name="trek", topic="trek", base=Base(id="nowhere")))
    (tmp_path / "guardrail.yaml").write_text(CONFIG, encoding="utf-8")

    def scorer(*args: Any, **options: Any) -> Windowed:
        return Windowed(trek=lambda turn: 0.1 if "bread" in turn.text else 0.5)

    monkeypatch.setattr("guardrail.engine.engine.open_engine", scorer)
    return tmp_path / "guardrail.yaml"


def run(*arguments: str | Path) -> str:
    result = CliRunner().invoke(app, ["explain", *(str(argument) for argument in arguments)])
    assert result.exit_code == 0, result.output
    return result.output


def test_in_words(config: Path) -> None:
    """Text, context, scores, thresholds and where they come from, parts, rules in order, decision, shadow, reply, time."""
    lines = run(config, "bake bread", "--after", "who is Spock").splitlines()
    story = {line.split()[0]: line for line in lines}
    assert list(dict.fromkeys(line.split()[0] for line in lines)) == [
        *("text", "after", "score", "part", "rule", "decision", "beside", "flags", "reply", "time"),
    ]
    assert "who is Spock" in story["after"]
    assert "trek 0.100 = not_related" in story["score"]
    assert "not related below 0.200, related from 0.600 (set by the config); fixed" in story["score"]
    assert [line for line in lines if line.startswith("rule")] == ["rule       long: does not hold", "rule       odd: holds"]
    assert "refuse, because none of the allowed topics: trek (policy default, version " in story["decision"]
    assert "Only trek." in story["reply"]


def test_as_json(config: Path) -> None:
    """The same for programs."""
    facts = json.loads(run(config, "hello Spock", "--json"))
    assert facts["topics"]["trek"]["thresholds_from"] == "config"
    assert [(part["text"], part["score"]) for part in facts["parts"]] == [("hello", 0.1), ("Spock", 0.9)]
    assert (facts["action"], facts["rule"]) == ("allow", "unsure")
    assert (facts["beside"]["policy"], facts["beside"]["action"]) == ("next", "refuse")
    assert facts["rules"] == [{"rule": "long", "holds": False}, {"rule": "odd", "holds": False}]


def test_a_fault_is_told() -> None:
    """Where a guard would fall back on `on_error`, an explanation says what broke."""
    guard = Guard(FixedScorer(trek=ScoringError("no device")), Policy(allow=("trek",)))
    with pytest.raises(ScoringError, match="no device"):
        guard.explain("x")


def test_of_a_conversation() -> None:
    """Refused turns are named, and are no context."""
    guard = Guard(FixedScorer(trek=lambda turn: 0.1 if "bread" in turn.text else 0.9), Policy(allow=("trek",)))
    roles = ("user", "assistant") * 2
    messages = [{"role": role, "content": text} for role, text in zip(roles, ("bread", "no", "Spock", "yes"), strict=True)]
    story = guard.explain([*messages, {"role": "user", "content": "and?"}])
    assert (story.dropped, story.turn.context, story.parts, story.by_hand) == ((0, 1), ("Spock",), (), frozenset())
