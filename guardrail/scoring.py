"""What a scorer is: a turn in, per topic the probability that the turn belongs to it.

Scoring runs on worker threads, so a scorer answers with a `concurrent.futures.Future`: a caller in a thread waits for its result,
a caller in an event loop wraps it with `asyncio.wrap_future`. That way the logic exists once for both.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from enum import Enum
from typing import Protocol, runtime_checkable

from guardrail.chat import Turn


class Band(str, Enum):
    """A score read through an adapter's two thresholds."""

    RELATED = "related"
    UNSURE = "unsure"
    NOT_RELATED = "not_related"


@dataclass(frozen=True, slots=True)
class Thresholds:
    """From `related` upwards a probability is related, below `not_related` it is not, between them nobody knows."""

    not_related: float
    related: float

    def __post_init__(self) -> None:
        """Raise `ValueError` unless 0 <= not_related <= related <= 1."""
        if not 0.0 <= self.not_related <= self.related <= 1.0:
            raise ValueError(f"thresholds must satisfy 0 <= not_related <= related <= 1, got {self}")

    def band(self, probability: float) -> Band:
        """Band of a probability in [0, 1]."""
        if probability >= self.related:
            return Band.RELATED
        return Band.NOT_RELATED if probability < self.not_related else Band.UNSURE

    def predicted(self, probability: float) -> Band:
        """The likelier of the two labels, for whoever needs one: the unsure band is cut in its middle."""
        middle = (self.not_related + self.related) / 2
        return Band.RELATED if probability >= middle else Band.NOT_RELATED


@dataclass(frozen=True, slots=True)
class Score:
    """P(related) of one turn: the lowest and the highest over the views and windows of its text.

    A list of allowed topics reads `low` (every part must belong), a list of denied topics reads `high` (one part is enough).
    A short plain text has one view and one window: low == high.
    """

    low: float
    high: float


Scores = Mapping[str, Score]


@dataclass(frozen=True, slots=True)
class Topic:
    """What a scorer knows about a topic besides its scores: how to read them, and which adapter gave them."""

    thresholds: Thresholds
    adapter: str
    version: str


class Scorer(Protocol):
    """Scores turns; safe to call from many threads."""

    @property
    def topics(self) -> Mapping[str, Topic]:
        """The topics that every result of `submit` holds."""
        ...

    def submit(self, turn: Turn) -> Future[Scores]:
        """Start to score a turn. Never blocks; raises `OverloadedError` at once when the queue is full.

        The future ends with one `Score` per topic or with a `ScoringError`; cancelling it drops work that has not begun.
        """
        ...

    def close(self) -> None:
        """Stop the workers; what still waits ends with `ClosedError`."""
        ...


@dataclass(frozen=True, slots=True)
class Part:
    """One of the scores that a topic's score was made of: P(related) of a window of a view of the text."""

    topic: str
    view: str
    """`as written`, or `normalised`."""
    text: str
    """Of the window."""
    probability: float


@runtime_checkable
class Explaining(Protocol):
    """A scorer that can tell how a score came about; slower than `submit`, and for people only."""

    def parts(self, turn: Turn) -> Sequence[Part]:
        """The score of each window of each view, for every topic; raises `ScoringError`."""
        ...
