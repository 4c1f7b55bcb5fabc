"""Stand-ins for tests, of guardrail and of programs that use it: no model, no threads, no waiting."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import Future
from types import MappingProxyType

from guardrail.chat import Turn
from guardrail.scoring import Score, Scores, Thresholds, Topic

Probability = float | Exception
THRESHOLDS = Thresholds(not_related=0.3, related=0.7)


class FixedScorer:
    """A scorer that answers from a function `turn -> P(related)` per topic; scoring ends with an exception that it returns.

    >>> scorer = FixedScorer(star_trek=lambda turn: 0.99 if "Spock" in turn.text else 0.01)
    """

    def __init__(self, **topics: Callable[[Turn], Probability] | Probability) -> None:
        self._topics = topics
        self.turns: list[Turn] = []
        """Every turn that was submitted, in order."""

    @property
    def topics(self) -> Mapping[str, Topic]:
        """Each topic with thresholds 0.3 and 0.7."""
        return MappingProxyType({name: Topic(THRESHOLDS, "fixed", "0") for name in self._topics})

    def submit(self, turn: Turn) -> Future[Scores]:
        """A future that is done already."""
        self.turns.append(turn)
        future: Future[Scores] = Future()
        found = {name: value(turn) if callable(value) else value for name, value in self._topics.items()}
        failure = next((value for value in found.values() if isinstance(value, Exception)), None)
        if failure is not None:
            future.set_exception(failure)
        else:
            future.set_result({name: Score(float(value), float(value)) for name, value in found.items()})  # type: ignore[arg-type]
        return future

    def close(self) -> None:
        """Nothing to stop."""
