"""Scores of examples through the engine that serves: what is calibrated and measured is what a user gets."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Literal

import numpy as np
from rich.progress import track

from guardrail.adapter import load_adapter
from guardrail.scoring import Scores
from training.data import Example
from training.metrics import Bools, Floats

ServedForm = Literal["fp32", "int8"]
IN_FLIGHT = 64


def score_examples(adapter: Path, examples: Sequence[Example], form: ServedForm, near: Path | None = None) -> Floats:
    """P(related) of every example as an allow-list reads it (the lowest over views and windows), shape [n].

    Raises `AdapterError` if the adapter cannot be loaded and `ScoringError` if an example cannot be scored.
    """
    from guardrail.engine.engine import open_engine

    engine = open_engine({"topic": load_adapter(adapter)}, device="cpu", form=form, near=near)
    waiting: deque[Future[Scores]] = deque()
    scores: list[float] = []
    try:
        for example in track(examples, f"scoring, {form}", transient=True):
            waiting.append(engine.submit(example.turn))
            if len(waiting) >= IN_FLIGHT:
                scores.append(waiting.popleft().result()["topic"].low)
        scores += [future.result()["topic"].low for future in waiting]
    finally:
        engine.close()
    return np.array(scores, dtype=np.float64)


def truth_of(examples: Sequence[Example]) -> Bools:
    """True for `related`, shape [n]."""
    return np.array([example.label == "related" for example in examples], dtype=np.bool_)
