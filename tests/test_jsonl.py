"""Rows go out in the order they came in, with every key; a bad line loses nothing but itself."""

from __future__ import annotations

import json

from guardrail.jsonl import IN_FLIGHT, score_lines
from guardrail.scoring import Thresholds
from guardrail.testing import FixedScorer

LIMITS = Thresholds(0.2, 0.8)


def scored(lines: list[str], scorer: FixedScorer | None = None, turns: int = 2) -> tuple[list[dict[str, object]], list[int]]:
    bad: list[int] = []
    scorer = scorer or FixedScorer(t=lambda turn: len(turn.text) / 1000)
    rows = list(score_lines(lines, scorer, "t", LIMITS, turns, lambda number, _: bad.append(number)))
    return rows, bad


def test_order_and_keys() -> None:
    """More rows than are in flight at once come back in order."""
    count = IN_FLIGHT * 2 + 7
    rows, bad = scored([json.dumps({"input": "x" * index, "id": index, "é": [1]}) for index in range(count)])
    assert bad == []
    assert [row["id"] for row in rows] == list(range(count))
    assert rows[100] == {"input": "x" * 100, "id": 100, "é": [1], "score": 0.1, "band": "not_related", "predicted": "not_related"}


def test_bands_and_predictions() -> None:
    """The unsure band is cut in its middle for `predicted`."""
    rows, _ = scored([json.dumps({"input": "x" * n}) for n in (199, 499, 500, 800)])
    assert [row["band"] for row in rows] == ["not_related", "unsure", "unsure", "related"]
    assert [row["predicted"] for row in rows] == ["not_related", "not_related", "related", "related"]


def test_bad_lines() -> None:
    """Each is reported by number; empty lines are none."""
    lines = ["{", "[]", '{"text": "a"}', "", '{"input": 3}', '{"input": "a", "context": "b"}', '{"input": "a", "context": [1]}']
    rows, bad = scored([*lines, '{"input": "fine", "context": null}', "[" * 100_000])
    assert (len(rows), bad) == (1, [1, 2, 3, 5, 6, 7, 9])


def test_context_is_limited_as_in_a_conversation() -> None:
    """The newest turns count."""
    scorer = FixedScorer(t=0.5)
    scored(['{"input": "c", "context": ["a", "b"]}'], scorer, turns=1)
    assert scorer.turns[0].context == ("b",)
