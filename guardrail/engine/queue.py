"""Turns that wait for a worker: bounded, first come first served, each distinct turn once."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field

from guardrail.chat import Turn
from guardrail.errors import ClosedError, OverloadedError
from guardrail.scoring import Scores

CHARACTERS_PER_TOKEN = 4
LEAST_RETRY = 0.1
"""Seconds."""
FIRST_GUESS = 0.02
"""Seconds of work a turn, until something was measured."""
INERTIA = 0.9
"""Weight of the past in the moving average of the time per turn."""


@dataclass(eq=False, slots=True)
class Flight:
    """One turn on its way, and the futures of all who asked for it."""

    key: bytes
    turn: Turn
    futures: list[Future[Scores]] = field(default_factory=list)

    @property
    def tokens(self) -> int:
        """Roughly, from the number of characters."""
        return 1 + (len(self.turn.text) + sum(map(len, self.turn.context))) // CHARACTERS_PER_TOKEN

    @property
    def abandoned(self) -> bool:
        """Whether everybody who asked has gone."""
        return all(future.cancelled() for future in self.futures)


class TurnQueue:
    """At most `limit` waiting turns for `workers` threads."""

    def __init__(self, limit: int, workers: int) -> None:
        self._limit = limit
        self._workers = workers
        self._changed = threading.Condition()
        self._waiting: deque[Flight] = deque()
        self._flights: dict[bytes, Flight] = {}
        self._closed = False
        self._seconds = FIRST_GUESS

    def __len__(self) -> int:
        """Number of waiting turns."""
        return len(self._waiting)

    def join(self, key: bytes, turn: Turn) -> Future[Scores]:
        """A future for a turn; one that is on its way already is joined. Never blocks on work.

        Raises `OverloadedError` when the queue is full, `ClosedError` when it was closed.
        """
        with self._changed:
            if self._closed:
                raise ClosedError("the engine is closed")
            flight = self._flights.get(key) or self._new_flight(key, turn)
            future: Future[Scores] = Future()
            flight.futures.append(future)
            return future

    def _new_flight(self, key: bytes, turn: Turn) -> Flight:
        if len(self._waiting) >= self._limit:
            self._drop_abandoned()
        if len(self._waiting) >= self._limit:
            wait = max(LEAST_RETRY, len(self._waiting) * self._seconds / self._workers)
            raise OverloadedError(f"{len(self._waiting)} turns are waiting already, about {wait:.1f} s of work", wait)
        flight = self._flights[key] = Flight(key, turn)
        self._waiting.append(flight)
        self._changed.notify()
        return flight

    def take(self, tokens: int) -> list[Flight]:
        """Wait for work and take the next turn, with those behind it that fit into `tokens`; empty once the queue is closed."""
        with self._changed:
            while True:
                self._changed.wait_for(lambda: self._waiting or self._closed)
                if self._closed:
                    return []
                if taken := self._take_waiting(tokens):
                    return taken

    def _take_waiting(self, tokens: int) -> list[Flight]:
        taken: list[Flight] = []
        while self._waiting and (not taken or self._waiting[0].tokens <= tokens):
            flight = self._waiting.popleft()
            if flight.abandoned:
                self._drop(flight)
                continue
            taken.append(flight)
            tokens -= flight.tokens
        return taken

    def land(self, flight: Flight) -> list[Future[Scores]]:
        """The futures to be answered, once; whoever asks from now on starts anew."""
        with self._changed:
            self._forget(flight)
            futures, flight.futures = flight.futures, []
            return futures

    def worked(self, turns: int, seconds: float) -> None:
        """Tell how long a worker took for some turns."""
        with self._changed:
            self._seconds = INERTIA * self._seconds + (1 - INERTIA) * seconds / turns

    def close(self) -> Sequence[Flight]:
        """Let nobody in or out any more; returns what was waiting."""
        with self._changed:
            self._closed = True
            left = list(self._waiting)
            self._waiting.clear()
            self._changed.notify_all()
            return left

    def _drop_abandoned(self) -> None:
        for flight in [flight for flight in self._waiting if flight.abandoned]:
            self._waiting.remove(flight)
            self._drop(flight)

    def _drop(self, flight: Flight) -> None:
        """Forget a turn that was cancelled, and tell `concurrent.futures.wait`."""
        self._forget(flight)
        for future in flight.futures:
            future.set_running_or_notify_cancel()

    def _forget(self, flight: Flight) -> None:
        if self._flights.get(flight.key) is flight:
            del self._flights[flight.key]
