"""Decisions of the log judged again, by one policy or by two: what would change, without a model.

The scores are those of the log; thresholds are the logged ones too, unless a config sets its own by hand.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from guardrail.audit import LogError, read_log
from guardrail.policy import Decision, Observation, Policies, Policy, Request
from guardrail.scoring import Score, Thresholds, Topic

EXAMPLES = 3


@dataclass(frozen=True, slots=True)
class Judge:
    """Policies, and the thresholds that they set by hand."""

    policies: Policies
    thresholds: Mapping[str, Thresholds] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Replayed:
    """A logged decision and what a policy makes of the same scores."""

    path: Path
    number: int
    row: Mapping[str, Any]
    decision: Decision


def replay(path: Path, policy: Policy | Policies, thresholds: Mapping[str, Thresholds] | None = None) -> Iterator[Replayed]:
    """Each decision of a log file judged again. Needs no model.

    Raises `LogError` for a file that is no decision log, or one that does not hold a topic of the policy.
    """
    judge = Judge(policy if isinstance(policy, Policies) else Policies(policy), thresholds or {})
    for number, row in read_log(path):
        assert row is not None  # strict reading raised otherwise
        yield Replayed(path, number, row, _judged(path, number, row, judge))


def _judged(path: Path, number: int, row: Mapping[str, Any], judge: Judge) -> Decision:
    try:
        if "scores" not in row:
            request = Request(**row.get("request", {}))
            return judge.policies.select(request).decide_unscored(str(row.get("error", "not scored")))
        seen = _observed(row, judge.thresholds)
    except (AttributeError, KeyError, TypeError, ValueError) as exc:
        raise LogError(f"{path}:{number}: not a line of this version's decision log ({type(exc).__name__}: {exc})") from exc
    try:
        return judge.policies.decide(seen)
    except KeyError as exc:
        scored = ", ".join(row["scores"]) or "nothing"
        raise LogError(f"{path}:{number}: the policy needs the topic {exc}, the log scored {scored}") from exc


def _observed(row: Mapping[str, Any], thresholds: Mapping[str, Thresholds]) -> Observation:
    scores = {name: Score(value["low"], value["high"]) for name, value in row["scores"].items()}
    topics = {
        name: Topic(thresholds.get(name, Thresholds(*value["limits"])), *value["adapter"].rsplit("@", 1))
        for name, value in row["scores"].items()
    }
    return Observation(scores, topics, row["length"], row["seed"], Request(**row.get("request", {})))


@dataclass(frozen=True, slots=True)
class Verdict:
    """What came of a turn, and which rule of which policy said so."""

    outcome: str
    """`allow`, `refuse`, `route to large`, or `allow (shadow: refuse)`."""
    rule: str

    @classmethod
    def of(cls, decision: Decision) -> Verdict:
        """Of a decision made now."""
        shadow = decision.shadow.value if decision.shadow else None
        return cls(_outcome(decision.action.value, decision.route, shadow), _by(decision.policy, decision.rule))

    @classmethod
    def logged(cls, row: Mapping[str, Any]) -> Verdict:
        """Of a line of the log."""
        policy = str(row["policy"]).rpartition("@")[0]
        return cls(_outcome(row["action"], row.get("route"), row.get("shadow")), _by(policy, row["rule"]))


def _outcome(action: str, route: str | None, shadow: str | None) -> str:
    routed = f"{action} to {route}" if route else action
    return f"{routed} (shadow: {shadow})" if shadow else routed


def _by(policy: str, rule: str) -> str:
    return rule if policy in ("", "default") else f"{policy}: {rule}"


@dataclass(slots=True)
class Change:
    """Turns that would end differently, by the rules that decide on both sides."""

    before: Verdict
    after: Verdict
    count: int = 0
    examples: list[Mapping[str, Any]] = field(default_factory=list)
    """The first of them: file, line, length, scores, and the text if it was logged."""


@dataclass(slots=True)
class Comparison:
    """What changes between two judges; `changes` by count, most first."""

    decisions: int = 0
    changed: int = 0
    other_rule: int = 0
    """Turns that end the same, by another rule."""
    adapters: set[str] = field(default_factory=set)
    """Adapters (`name@version`) that gave the logged scores."""
    changes: list[Change] = field(default_factory=list)


def compare(paths: Iterable[Path], old: Judge | None, new: Judge) -> Comparison:
    """What `new` would have decided otherwise than `old`, or than the log says where that is None. Raises `LogError`."""
    found = Comparison()
    groups: dict[tuple[Verdict, Verdict], Change] = {}
    for path in paths:
        for item in replay(path, new.policies, new.thresholds):
            before = Verdict.logged(item.row) if old is None else Verdict.of(_judged(path, item.number, item.row, old))
            _count(found, groups, item, before, Verdict.of(item.decision))
    found.changes = sorted(groups.values(), key=lambda change: -change.count)
    return found


def _count(
    found: Comparison, groups: dict[tuple[Verdict, Verdict], Change], item: Replayed, before: Verdict, after: Verdict
) -> None:
    found.decisions += 1
    found.adapters |= {score["adapter"] for score in item.row.get("scores", {}).values()}
    if before.outcome == after.outcome:
        found.other_rule += before.rule != after.rule
        return
    found.changed += 1
    change = groups.setdefault((before, after), Change(before, after))
    change.count += 1
    if len(change.examples) < EXAMPLES:
        scores = {name: score["low"] for name, score in item.row.get("scores", {}).items()}
        text = {"text": item.row["text"]} if "text" in item.row else {}
        example = {"file": str(item.path), "line": item.number, "length": item.row["length"], "scores": scores}
        change.examples.append({**example, **text})
