"""The guarded APIs of OpenAI: where each keeps the user's text, and how each says no. One file per API."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from guardrail.chat import Turn
from guardrail.guard import Guard
from guardrail.proxy.strict_json import Json


@dataclass(frozen=True, slots=True)
class Reply:
    """A response that the proxy makes itself: a JSON body, or the events of a stream."""

    body: bytes
    stream: bool = False


class Api(Protocol):
    """One API."""

    def turns(self, body: Json, guard: Guard) -> Sequence[Turn]:
        """What the user says, all of which must pass.

        Raises `ApiError` 400 for a body of the wrong form and for fields that change the prompt or the upstream behind the
        guard's back, `UnreadableError` for text that cannot be judged.
        """
        ...

    def refusal(self, body: Json, text: str) -> Reply:
        """The refusal as the answer that the request asked for: plain or streamed, with its number of choices."""
        ...

    def rerouted(self, raw: bytes, *, model: str | None, system: str | None) -> bytes:
        """The request for another upstream: model and system prompt replaced, all other bytes as they were."""
        ...
