"""Turns into token windows; the same code for training and for serving.

Encoder models get a text pair, `[CLS] context [SEP] text [SEP]`, and without context `[CLS] text [SEP]`. Decoder models get the
text alone, as checkpoints trained on bare questions expect it, and with context the lines `Earlier:`, context, `Now:`, text; no
closing token follows, because they are pooled at the last one. A text longer than a window becomes several, with the context
repeated in front of each: nothing is cut. Of the context only the newest tokens are kept.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from guardrail.chat import Turn
from guardrail.engine.views import normalise
from guardrail.errors import AdapterError, UnreadableError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

CHARACTERS_PER_TOKEN = 16
"""A bound, four times that of prose: what is longer cannot fit its windows and is turned away before it is tokenised."""
LONG_SPACE = re.compile(r"\s{17,}")
LONG_WORD = re.compile(r"([\w\u0300-\u036f\u1ab0-\u1aff\u1dc0-\u1dff\u20d0-\u20ff\ufe20-\ufe2f]{32})(?=\w)")
"""WordPiece reads a word of over 100 characters (33 of Hangul, which it decomposes) as one unknown token: a place to hide."""
EARLIER, NOW = "Earlier:\n", "\nNow:\n"


@dataclass(frozen=True, slots=True)
class Encoded:
    """One input of a forward pass: token ids and segment ids, both of the same length, unpadded."""

    ids: tuple[int, ...]
    type_ids: tuple[int, ...]


_NOTHING = Encoded((), ())


class Encoder:
    """Turns into windows of at most `window_tokens` tokens, of which neighbours share `stride_tokens` tokens of text.

    Raises `AdapterError` where those numbers leave no room for the text. Safe to use from many threads.
    """

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
        self._tokenizer = tokenizer
        self._kind = kind
        self._window = window_tokens
        self._stride = stride_tokens
        self._context = context_tokens
        self._max_windows = max_windows
        self._max_characters = max_windows * window_tokens * CHARACTERS_PER_TOKEN
        self._single, self._pair = self._templates()
        if self._room(context_tokens, self._pair) <= stride_tokens:
            raise AdapterError(
                f"window_tokens {window_tokens} leaves no room beside context_tokens {context_tokens} and stride_tokens "
                f"{stride_tokens}. Fix: raise window_tokens or lower the others in guardrail.json"
            )

    def windows(self, turn: Turn) -> list[Encoded]:
        """The windows of a turn's text, its context (normalised) in front of each; the last one ends where the text ends.

        Raises `UnreadableError` for a text that needs more than `max_windows` of them.
        """
        body = self._ids(self._bounded(turn.text))
        context = self._context_ids(turn.context)
        template = self._pair if context else self._single
        if not body and self._kind == "decoder":
            body = self._ids("\n")
        room = self._room(len(context), template)
        return [_filled(template, context, body[start : start + room]) for start in self._starts(len(body), room)]

    def texts(self, turn: Turn) -> list[str]:
        """The text of each of `windows`, to be shown to people."""
        text = self._pieces(self._bounded(turn.text))
        offsets = self._tokenizer.encode(text, add_special_tokens=False).offsets
        context = self._context_ids(turn.context)
        room = self._room(len(context), self._pair if context else self._single)
        spans = [offsets[start : start + room] for start in self._starts(len(offsets), room)]
        return [text[span[0][0] : span[-1][1]] if span else "" for span in spans]

    def _starts(self, length: int, room: int) -> list[int]:
        last = max(length - room, 0)
        starts = [*range(0, last, room - self._stride), last]
        if len(starts) > self._max_windows:
            raise self._too_long(f"{length} tokens need {len(starts)} windows, the limit is {self._max_windows}")
        return starts

    def _bounded(self, text: str) -> str:
        text = LONG_SPACE.sub(_one_space, _well_formed(text))
        if len(text) > self._max_characters:
            raise self._too_long(f"{len(text)} characters, the limit is {self._max_characters}")
        return text

    def _too_long(self, reason: str) -> UnreadableError:
        return UnreadableError(f"the text is too long to be judged: {reason}. Fix: send it in parts")

    def _context_ids(self, context: tuple[str, ...]) -> list[int]:
        if not self._context:
            return []
        newest = "\n".join(context)[-self._context * CHARACTERS_PER_TOKEN :]
        return self._ids(LONG_SPACE.sub(_one_space, normalise(_well_formed(newest))))[-self._context :]

    def _ids(self, text: str) -> list[int]:
        return list(self._tokenizer.encode(self._pieces(text), add_special_tokens=False).ids)

    def _pieces(self, text: str) -> str:
        return LONG_WORD.sub(r"\1 ", text) if self._kind == "encoder" else text

    def _room(self, context: int, template: _Template) -> int:
        return self._window - len(template.head.ids) - len(template.middle.ids) - len(template.tail.ids) - context

    def _templates(self) -> tuple[_Template, _Template]:
        single, pair = self._special_tokens(None), self._special_tokens("a")
        if self._kind == "encoder":
            return single, pair
        earlier, now = self._ids(EARLIER), self._ids(NOW)
        begin = list(single.head.ids)
        return _Template(_plain(begin), _NOTHING, _NOTHING, 0), _Template(_plain(begin + earlier), _plain(now), _NOTHING, 0)

    def _special_tokens(self, second: str | None) -> _Template:
        """What the model's own tokenizer (the post-processor in tokenizer.json) puts before, between and after the parts."""
        shown = self._tokenizer.encode("a", second, add_special_tokens=True)
        parts, rows = shown.sequence_ids, list(zip(shown.ids, shown.type_ids, strict=True))
        first, last = parts.index(0), len(parts) - 1 - parts[::-1].index(0 if second is None else 1)
        middle = [rows[i] for i in range(first, last) if parts[i] is None]
        return _Template(_rows(rows[:first]), _rows(middle), _rows(rows[last + 1 :]), rows[last][1])


@dataclass(frozen=True, slots=True)
class _Template:
    """Fixed tokens around context and text; `type_id` is the text's segment, context has segment 0."""

    head: Encoded
    middle: Encoded
    tail: Encoded
    type_id: int


def _filled(template: _Template, context: list[int], body: list[int]) -> Encoded:
    before = (*template.head.ids, *context, *template.middle.ids)
    segments = (*template.head.type_ids, *[0] * len(context), *template.middle.type_ids)
    types = (*segments, *[template.type_id] * len(body), *template.tail.type_ids)
    return Encoded((*before, *body, *template.tail.ids), types)


def _plain(ids: list[int]) -> Encoded:
    return Encoded(tuple(ids), (0,) * len(ids))


def _rows(rows: list[tuple[int, int]]) -> Encoded:
    return Encoded(tuple(row[0] for row in rows), tuple(row[1] for row in rows))


def _one_space(run: re.Match[str]) -> str:
    return "\n" if "\n" in run[0] else " "


def _well_formed(text: str) -> str:
    """JSON can carry half of a surrogate pair (RFC 8259, 8.2), which no tokenizer reads."""
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
