"""Score once, decide many: recorded scores judged by other policies, without a model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from guardrail import Guard
from guardrail.audit import DecisionLog, LogError
from guardrail.cli import app
from guardrail.config import read_config
from guardrail.replay import Judge, compare, replay
from guardrail.testing import FixedScorer

CONFIG = """\
topics: {star_trek: {adapter: not-here}}
allow: [star_trek]
"""
SAID = {"Spock": 0.9, "bread": 0.1, "is it logical": 0.5, "my cat": 0.5, "broken": -1.0}


def write(path: Path, more: str = "") -> Path:
    path.write_text(CONFIG + more, encoding="utf-8")
    return path


@pytest.fixture
def log(tmp_path: Path) -> Path:
    """A log of five turns: one allowed, one refused, two unsure, one that could not be scored."""
    path = tmp_path / "log.jsonl"
    config = read_config(write(tmp_path / "was.yaml"))
    scorer = FixedScorer(star_trek=lambda turn: SAID[turn.text] if SAID[turn.text] >= 0 else RuntimeError("boom"))
    with Guard.from_config(config, scorer, log=DecisionLog(path, text=True)) as guard:
        for text in SAID:
            guard.check(text)
    return path


def judge(path: Path) -> Judge:
    config = read_config(path)
    return Judge(config.policies_in_force(), config.thresholds())


def test_the_same_policy_changes_nothing(log: Path, tmp_path: Path) -> None:
    """Replay gives back what was decided, with action, rule and version."""
    config = read_config(tmp_path / "was.yaml")
    replayed = list(replay(log, config.policies_in_force()))
    assert [(r.decision.action.value, r.decision.rule) for r in replayed] == [(r.row["action"], r.row["rule"]) for r in replayed]
    assert all(r.row["policy"] == f"default@{r.decision.policy_version}" for r in replayed)
    found = compare([log], None, judge(tmp_path / "was.yaml"))
    assert (found.decisions, found.changed, found.other_rule, found.adapters) == (5, 0, 0, {"fixed@0"})


@pytest.mark.parametrize(
    ("more", "changes"),
    [
        ("unsure: refuse\n", [(2, "allow", "refuse", "unsure")]),
        ("on_error: allow\n", [(1, "refuse", "allow", "on_error")]),
        ("mode: shadow\n", [(3, "allow", "allow (shadow: allow)", None), (2, "refuse", "allow (shadow: refuse)", None)]),
        ("unsure: {route: big}\n", [(2, "allow", "route to big", "unsure")]),
        (
            "rules:\n  - {name: short, if: {text_shorter_than: 6}, do: refuse}\n",
            [(1, "allow", "refuse", "short")],
        ),
    ],
)
def test_what_would_change(log: Path, tmp_path: Path, more: str, changes: list[tuple[int, str, str, str | None]]) -> None:
    """Every flipped decision is counted by outcome and rule, with examples."""
    found = compare([log], judge(tmp_path / "was.yaml"), judge(write(tmp_path / "new.yaml", more)))
    by_outcome: dict[tuple[str, str], int] = {}
    for change in found.changes:
        key = (change.before.outcome, change.after.outcome)
        by_outcome[key] = by_outcome.get(key, 0) + change.count
        assert len(change.examples) == min(change.count, 3)
    assert by_outcome == {(before, after): count for count, before, after, _ in changes}
    rules = {change.after.rule for change in found.changes}
    assert all(rule in rules for *_, rule in changes if rule is not None)


def test_thresholds_by_hand_are_used(log: Path, tmp_path: Path) -> None:
    """A config with other thresholds reads the same scores otherwise."""
    path = tmp_path / "strict.yaml"
    path.write_text(CONFIG.replace("not-here", "not-here, thresholds: {not_related: 0.95, related: 0.95}"), encoding="utf-8")
    assert compare([log], None, judge(path)).changed == 3


def run(*arguments: str | Path) -> tuple[int, str]:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    return result.exit_code, result.output


def test_commands(log: Path, tmp_path: Path) -> None:
    """`diff`, `replay` and `audit verify` for people and, with --json, for programs."""
    old, new = tmp_path / "was.yaml", write(tmp_path / "new.yaml", "unsure: refuse\n")
    code, out = run("diff", old, new, "--replay", log)
    assert code == 0
    assert "2  allow -> refuse" in out
    assert "'is it logical'" in out
    assert "5 decisions, 2 change" in out
    facts: dict[str, Any] = json.loads(run("diff", old, new, "--replay", log, "--json")[1])
    assert (facts["changed"], facts["changes"][0]["after"]) == (2, {"outcome": "refuse", "rule": "unsure"})
    assert json.loads(run("replay", log, new, "--json")[1])["changed"] == 2
    assert run("audit", "verify", log) == (0, f"{log}: 5 lines in 1 files, 0 faults\n")
    log.write_text(log.read_text().replace("bread", "break"))
    code, out = run("audit", "verify", log, "--json")
    assert (code, json.loads(out)["faults"]) == (1, [{"file": str(log), "line": 2, "fault": "changed"}])


def test_what_cannot_be_replayed(log: Path, tmp_path: Path) -> None:
    """A topic that was never scored, and a file that is no log, are told with file and line."""
    path = tmp_path / "other.yaml"
    path.write_text(CONFIG.replace("star_trek", "chess"), encoding="utf-8")
    with pytest.raises(LogError, match=r"log.jsonl:1: the policy needs the topic 'chess'"):
        compare([log], None, judge(path))
    with pytest.raises(LogError, match=r"was.yaml:1: not a line of a decision log"):
        compare([tmp_path / "was.yaml"], None, judge(tmp_path / "was.yaml"))
    (tmp_path / "foreign").write_text('{"scores": 3}\n')
    with pytest.raises(LogError, match=r"foreign:1: not a line of this version"):
        compare([tmp_path / "foreign"], None, judge(tmp_path / "was.yaml"))
