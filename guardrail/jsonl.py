"""Scores for a file of texts: JSON lines in, JSON lines out, in the same order, every key kept.

A row is `{"input": "...", "context": ["earlier turn", ...]}` with any other keys. It comes back with `score` (P(related)),
`band` and `predicted`. A bad line is reported and left out; the others are scored all the same.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from typing import Any

from guardrail.chat import Turn
from guardrail.errors import GuardrailError
from guardrail.scoring import Scorer, Scores, Thresholds

IN_FLIGHT = 64  # rows submitted ahead of the one that is written: enough to keep every worker busy
Row = dict[str, Any]
Report = Callable[[int, str], None]


def score_lines(
    lines: Iterable[str | bytes], scorer: Scorer, topic: str, thresholds: Thresholds, context_turns: int, report: Report
) -> Iterator[Row]:
    """Rows with their scores, in order; `report(line number from 1, reason)` is called for each bad line."""
    waiting: deque[tuple[int, Row, Future[Scores]]] = deque()
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row, turn = read_row(line, context_turns)
            waiting.append((number, row, scorer.submit(turn)))
        except (ValueError, GuardrailError) as exc:
            report(number, str(exc))
        if len(waiting) >= IN_FLIGHT:
            yield from _scored(*waiting.popleft(), topic, thresholds, report)
    while waiting:
        yield from _scored(*waiting.popleft(), topic, thresholds, report)


def read_row(line: str | bytes, context_turns: int) -> tuple[Row, Turn]:
    """One line as a row and the turn it holds. Raises `ValueError` that names the key."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as exc:
        raise ValueError(f"not valid JSON: {exc}") from exc
    if not isinstance(row, dict):
        raise ValueError(f"must be an object, found {type(row).__name__}")
    context = row.get("context") or []
    if not isinstance(row.get("input"), str):
        raise ValueError("the key 'input' must be a text")
    if not isinstance(context, list) or not all(isinstance(turn, str) for turn in context):
        raise ValueError("the key 'context' must be a list of texts, oldest first")
    return row, Turn(row["input"], tuple(context[-context_turns:]) if context_turns else ())


def _scored(number: int, row: Row, future: Future[Scores], topic: str, thresholds: Thresholds, report: Report) -> Iterator[Row]:
    try:
        score = future.result()[topic].low
    except GuardrailError as exc:
        report(number, str(exc))
        return
    band, predicted = thresholds.band(score), thresholds.predicted(score)
    yield {**row, "score": round(score, 6), "band": band.value, "predicted": predicted.value}
