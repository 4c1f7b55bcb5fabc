"""The guarded APIs of OpenAI: where each keeps the user's text, and how each says no. One file per API."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from guardrail.guard import Said
from guardrail.proxy.strict_json import Json


@dataclass(frozen=True, slots=True)
class Reply:
    """A response that the proxy makes itself: a JSON body, or the events of a stream."""

    body: bytes
    stream: bool = False


@dataclass(frozen=True, slots=True)
class Edits:
    """What an upstream gets in place of the client's own; None leaves it."""

    model: str | None = None
    system: str | None = None
    dropped: frozenset[int] = frozenset()
    """Messages, by their index in what `Api.said` gave, that belong to turns which were refused earlier."""


class Api(Protocol):
    """One API."""

    def said(self, body: Json) -> Sequence[Said]:
        """What the user says, all of which must pass.

        Raises `ApiError` 400 for a body of the wrong form, for text where it cannot be judged, and for fields that change the
        prompt or the upstream behind the guard's back.
        """
        ...

    def refusal(self, body: Json, text: str) -> Reply:
        """The refusal as the answer that the request asked for: plain or streamed, with its number of choices."""
        ...

    def forwarded(self, raw: bytes, body: Json, edits: Edits) -> bytes:
        """The request for an upstream: without edits the same bytes, with them every other byte as it was."""
        ...
