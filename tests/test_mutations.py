"""`guardrail check --mutate` repeats each policy test in other spellings and prints which flip."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from guardrail.adapter import Base, Manifest, save_manifest
from guardrail.chat import Turn
from guardrail.cli import app
from guardrail.mutations import mutations
from guardrail.testing import FixedScorer


@given(st.text(max_size=60))
def test_any_text_has_mutations(text: str) -> None:
    """They differ from the text, are the same at every run, and do not fail on odd texts."""
    found = list(mutations(text))
    assert found == list(mutations(text))
    assert all(mutation.text != text for mutation in found)


def test_each_kind() -> None:
    """Typos keep the first letter, look-alikes keep the looks, padding keeps the sentence."""
    found = {mutation.kind: mutation.text for mutation in mutations("Who is Captain Picard?")}
    assert len(found) == 10
    assert [word[:1] for word in found["typo: letter left out"].split()] == ["W", "i", "C", "P"]
    assert found["case: upper"] == "WHO IS CAPTAIN PICARD?"
    assert found["look-alike letters"].isascii() is False
    assert len(found["look-alike letters"]) == len("Who is Captain Picard?")
    assert "Who is Captain Picard?" in found["padding: before"]


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A config with two tests, on a scorer that knows the word Spock only as it is written."""
    (tmp_path / "trek").mkdir()
    save_manifest(tmp_path / "trek", Manifest(name="trek", topic="trek", base=Base(id="nowhere")))
    path = tmp_path / "guardrail.yaml"
    tests = "tests:\n  - {say: Who is Spock, expect: allow}\n  - {say: bread, expect: refuse}\n"
    path.write_text("topics: {trek: {adapter: ./trek}}\nallow: [trek]\n" + tests, encoding="utf-8")

    def scorer(*args: object, **kwargs: object) -> FixedScorer:
        return FixedScorer(trek=lambda turn: score(turn))

    def score(turn: Turn) -> float:
        return 0.99 if "Spock" in turn.text else 0.01

    monkeypatch.setattr("guardrail.engine.engine.open_engine", scorer)
    return path


def test_check_mutate(config: Path) -> None:
    """Flips are printed with their kind and score; they are no failures."""
    result = CliRunner().invoke(app, ["check", str(config), "--mutate"])
    assert result.exit_code == 0, result.output
    assert "flips  case: upper: 'WHO IS SPOCK': expected allow, got refuse" in result.output
    assert "padding" not in result.output
    facts = json.loads(CliRunner().invoke(app, ["check", str(config), "--mutate", "--json"]).output)
    assert {flip["kind"] for flip in facts["flips"]} >= {"case: upper", "case: lower", "look-alike letters"}
    assert all(flip["of"] == "Who is Spock" and flip["action"] == "refuse" for flip in facts["flips"])
    plain = CliRunner().invoke(app, ["check", str(config)])
    assert "flips" not in plain.output
    assert "2 tests, 0 failed" in plain.output


def test_a_failed_test(config: Path) -> None:
    """It is told with the scores, and the exit code is 1; it is not mutated as well."""
    config.write_text(config.read_text().replace("bread, expect: refuse", "bread, expect: allow"))
    result = CliRunner().invoke(app, ["check", str(config), "--mutate"])
    assert result.exit_code == 1
    assert "FAILED 'bread': expected allow, got refuse (none of the allowed topics: trek; trek 0.010)" in result.output
