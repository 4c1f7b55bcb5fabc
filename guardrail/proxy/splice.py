"""Edits in a JSON text that leave every other byte as it was: no parser sits between the client's numbers and the upstream."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from json.decoder import WHITESPACE, scanstring  # type: ignore[attr-defined]

_decoder = json.JSONDecoder()


@dataclass(frozen=True, slots=True)
class Span:
    """A value in a JSON text, as character offsets."""

    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Edit:
    """What stands at a span from now on."""

    span: Span
    text: str


def members(text: str) -> Iterator[tuple[str, Span]]:
    """Keys of the object that a valid JSON text is, with the spans of their values."""
    at = _skip(text, _skip(text, 0) + 1)
    while text[at] != "}":
        key, at = scanstring(text, at + 1)
        start = _skip(text, _skip(text, at) + 1)
        at = _end(text, start)
        yield key, Span(start, at)
        at = _next(text, at)


def elements(text: str, array: Span) -> Iterator[Span]:
    """Spans of the elements of an array."""
    at = _skip(text, array.start + 1)
    while text[at] != "]":
        start, at = at, _end(text, at)
        yield Span(start, at)
        at = _next(text, at)


def apply(text: str, edits: Sequence[Edit]) -> str:
    """The text with edits made; their spans do not overlap."""
    for edit in sorted(edits, key=lambda edit: edit.span.start, reverse=True):
        text = text[: edit.span.start] + edit.text + text[edit.span.end :]
    return text


def set_member(text: str, key: str, value: str) -> Edit:
    """The edit that gives a top-level key a value (JSON): replaced where it stands, put first where it is missing."""
    found = dict(members(text)).get(key)
    if found is not None:
        return Edit(found, value)
    first = _skip(text, 0) + 1
    comma = "" if text[_skip(text, first)] == "}" else ","
    return Edit(Span(first, first), f"{json.dumps(key)}:{value}{comma}")


def remove_member(text: str, key: str) -> str:
    """The text without a top-level key, if it is there."""
    spans = list(members(text))
    index = next((index for index, (name, _) in enumerate(spans) if name == key), None)
    if index is None:
        return text
    first = _skip(text, 0) + 1
    start = spans[index - 1][1].end if index else first
    end = spans[index][1].end
    if not index and len(spans) > 1:  # the comma behind it goes too
        end = _next(text, end)
    return text[:start] + text[end:]


def array_of(text: str, parts: Sequence[Span | str]) -> str:
    """A JSON array of elements kept from a text and new ones."""
    return "[" + ",".join(part if isinstance(part, str) else text[part.start : part.end] for part in parts) + "]"


def _skip(text: str, at: int) -> int:
    match = WHITESPACE.match(text, at)
    return int(match.end())


def _end(text: str, start: int) -> int:
    return _decoder.raw_decode(text, start)[1]


def _next(text: str, at: int) -> int:
    """Start of the next member or element, or the closing bracket."""
    at = _skip(text, at)
    return _skip(text, at + 1) if text[at] == "," else at
