"""Train, validation and test, disjoint by name and by template.

Composed examples come with their part (`generate`). A hand-written message goes where the names that it mentions belong, by its
hash if it mentions none, and out if they disagree. Then near-duplicates go: of two examples whose five-letter shingles overlap
by 0.8 (Jaccard), the one outside train is dropped; the same text with two labels is dropped altogether.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from training.data import Example
from training.names import PARTS, Names, Part, part_of
from training.near import near_duplicates

SIMILAR = 0.8


@dataclass(frozen=True, slots=True)
class Split:
    """The three parts, and what was left out of them and why."""

    parts: Mapping[Part, tuple[Example, ...]]
    dropped: Mapping[str, int]
    conflicts: tuple[str, ...]
    """Where the same text stands with two labels."""


def split_examples(
    composed: Mapping[Part, list[Example]], messages: Iterable[Example], names: Names, share: float, seed: int
) -> Split:
    """All examples in their parts; `share` of the messages without a name is test, as much validation."""
    dropped: Counter[str] = Counter()
    parts: dict[Part, list[Example]] = {part: [] for part in PARTS}
    for message in messages:
        part = _part_of_message(message, names, share, seed)
        if part is None:
            dropped["names of several parts"] += 1
        else:
            parts[part].append(replace(message, entities=names.mentions([*message.context, message.input])))
    for part in PARTS:
        parts[part] += composed[part]
    conflicts = _conflicts(parts)
    clean = _deduplicated(parts, {key for key, _ in conflicts}, dropped)
    split = Split(clean, dict(dropped), tuple(where for _, where in conflicts))
    check_disjoint(split.parts, names)
    return split


def _part_of_message(message: Example, names: Names, share: float, seed: int) -> Part | None:
    found = names.parts_of([*message.context, message.input])
    if len(found) > 1:
        return None
    return next(iter(found), None) or part_of(share, seed, message.key)


def _conflicts(parts: Mapping[Part, list[Example]]) -> list[tuple[str, str]]:
    """Keys that stand with two labels, each with the places."""
    by_key: dict[str, list[Example]] = defaultdict(list)
    for examples in parts.values():
        for example in examples:
            by_key[example.key].append(example)
    return [
        (key, f"{' and '.join(sorted({_place(example) for example in same}))}: {same[0].input!r}")
        for key, same in by_key.items()
        if len({example.label for example in same}) > 1
    ]


def _place(example: Example) -> str:
    return f"{example.origin or example.template} ({example.label})"


def _deduplicated(
    parts: Mapping[Part, list[Example]], conflicting: set[str], dropped: Counter[str]
) -> dict[Part, tuple[Example, ...]]:
    """Without conflicts, without repeats inside a part, without near-duplicates of an earlier part."""
    kept: list[tuple[Part, Example]] = []
    seen: set[str] = set(conflicting)
    for part in PARTS:
        for example in parts[part]:
            if example.key in seen:
                dropped["conflicting labels" if example.key in conflicting else "repeats"] += 1
            else:
                seen.add(example.key)
                kept.append((part, example))
    near = near_duplicates([example.key for _, example in kept], [part for part, _ in kept], SIMILAR)
    dropped["near-duplicates across parts"] += len(near)
    return {
        part: tuple(example for index, (owner, example) in enumerate(kept) if owner == part and index not in near)
        for part in PARTS
    }


def check_disjoint(parts: Mapping[Part, Iterable[Example]], names: Names) -> None:
    """Raise `AssertionError` if a tracked name or a template occurs in two parts."""
    entities: dict[str, Part] = {}
    templates: dict[str, Part] = {}
    for part, examples in parts.items():
        for example in examples:
            for entity in names.mentions([*example.context, example.input]):
                assert entities.setdefault(entity, part) == part, f"{entity!r} is in {entities[entity]} and in {part}"
            if example.template:
                assert templates.setdefault(example.template, part) == part, f"{example.template!r} is in two parts"
