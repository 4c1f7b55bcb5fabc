"""Turns into token windows; the same for training and serving."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from guardrail.chat import Turn

if TYPE_CHECKING:
    from tokenizers import Tokenizer


@dataclass(frozen=True, slots=True)
class Encoded:
    """One input of a forward pass: token ids and segment ids, both of the same length, unpadded."""

    ids: tuple[int, ...]
    type_ids: tuple[int, ...]


class Encoder:
    """Turns into windows of at most `window_tokens` tokens."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        *,
        kind: Literal["encoder", "decoder"],
        window_tokens: int,
        stride_tokens: int,
        context_tokens: int,
        max_windows: int = 64,
    ) -> None:
        raise NotImplementedError

    def windows(self, turn: Turn) -> list[Encoded]:
        """The windows of a turn's text, its context in front of each; raises `UnreadableError` past `max_windows`."""
        raise NotImplementedError
