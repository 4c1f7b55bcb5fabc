"""The scorer that runs in this process."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import Future
from pathlib import Path
from typing import Literal

from guardrail.adapter import Adapter, Form
from guardrail.chat import Turn
from guardrail.scoring import Scores, Topic


class Engine:
    """A `scoring.Scorer`."""

    @property
    def topics(self) -> Mapping[str, Topic]:
        """The topics that every result of `submit` holds."""
        raise NotImplementedError

    def submit(self, turn: Turn) -> Future[Scores]:
        """Start to score a turn."""
        raise NotImplementedError

    def close(self) -> None:
        """Stop the workers; what still waits ends with `ClosedError`."""
        raise NotImplementedError


def open_engine(
    adapters: Mapping[str, Adapter],
    *,
    device: Literal["auto", "cpu", "cuda"] = "auto",
    near: Path | None = None,
    queue_limit: int = 256,
    cache_dir: Path | None = None,
    form: Form | None = None,
) -> Engine:
    """Load the adapters (topic name -> adapter), check their canaries and start the workers."""
    raise NotImplementedError
