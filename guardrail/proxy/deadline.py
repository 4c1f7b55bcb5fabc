"""A time limit that can be pushed back: `asyncio.timeout` for Python 3.10 too, cheap enough for every piece of a stream."""

from __future__ import annotations

import asyncio
from types import TracebackType


class Deadline:
    """`with Deadline(seconds)`: the current task gets `asyncio.TimeoutError` when nothing called `extend` for so long."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._loop = asyncio.get_running_loop()
        self._task = asyncio.current_task()
        self._due = 0.0
        self._expired = False

    def extend(self) -> None:
        """Start the time anew; the timer itself is only moved when it fires, so this costs next to nothing."""
        self._due = self._loop.time() + self._seconds

    def __enter__(self) -> Deadline:
        self.extend()
        self._timer = self._loop.call_at(self._due, self._fire)
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None) -> None:
        self._timer.cancel()
        if self._expired and kind is asyncio.CancelledError:
            getattr(self._task, "uncancel", int)()  # from Python 3.11 on, a task counts its cancellations
            raise asyncio.TimeoutError from exc

    def _fire(self) -> None:
        if self._loop.time() < self._due:
            self._timer = self._loop.call_at(self._due, self._fire)
        elif self._task is not None:
            self._expired = True
            self._task.cancel()
