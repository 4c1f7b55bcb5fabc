"""Composed examples: facts set into templates, so that thousands of names are covered.

Every part (train, validation, test) is composed from its own names and its own templates. Shared templates come in pairs, one
filled with a name of the topic and one with a name from elsewhere, so that the form says nothing about the label. Names that
were used least come first, so every name of a kind occurs about equally often; kinds share the rows by how many names they
have. One seed gives one data set, byte for byte.
"""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from training.data import LABELS, Example, normalise
from training.names import PARTS, Names, Part, part_of
from training.topic import PLACEHOLDER, SHARED, Fact, Template, Topic

PATIENCE = 50
"""Fillings that are tried before a template is given up for this turn: an attribute may name something of another part."""


def generate(
    topic: Topic, names: Names, rows: Mapping[Part, int], labelled: float, share: float, seed: int
) -> dict[Part, list[Example]]:
    """About `rows` examples for every part, `labelled` of them from templates with a label of their own."""
    return {part: _compose_part(topic, names, part, rows.get(part, 0), labelled, share, seed) for part in PARTS}


def _compose_part(topic: Topic, names: Names, part: Part, rows: int, labelled: float, share: float, seed: int) -> list[Example]:
    composer = Composer(_facts_of(topic.facts, names, part), names, part, random.Random(f"{seed} {part}"))
    templates = [template for template in topic.templates if part_of(share, seed, template.id) == part]
    shared = [template for template in templates if template.label == SHARED]
    own = [template for template in templates if template.label != SHARED]
    of_own = round(rows * labelled) if shared and own else rows
    pairs = composer.fill(shared, (rows - of_own if own else rows) // 2, LABELS)
    return [*pairs, *composer.fill(own, of_own if own else 0, ("related",))]


def _facts_of(facts: Sequence[Fact], names: Names, part: Part) -> list[Fact]:
    """Facts whose name belongs to a part; a name that cannot be tracked belongs to train."""
    return [fact for fact in facts if (names.parts_of([fact.name]) or {"train"}) == {part}]


@dataclass
class Composer:
    """Fills the templates of one part; keeps count of the names it used."""

    facts: Sequence[Fact]
    names: Names
    part: Part
    chance: random.Random
    used: Counter[tuple[str, str, str]] = field(default_factory=Counter)
    by_kind: dict[tuple[str, str], list[Fact]] = field(default_factory=lambda: defaultdict(list))

    def __post_init__(self) -> None:
        for fact in self.facts:
            self.by_kind[fact.side, fact.kind].append(fact)
        for rows in self.by_kind.values():
            self.chance.shuffle(rows)

    def fill(self, templates: Sequence[Template], count: int, sides: Sequence[str]) -> list[Example]:
        """`count` times one example a side; a template that a side cannot fill is left out."""
        usable = [each for each in templates if all(self._can(each, side) for side in sides)]
        filled: list[Example] = []
        for template in self._schedule(usable, count):
            examples = [self._fill(template, side) for side in sides]
            filled += [example for example in examples if example] if all(examples) else []
        return filled

    def _can(self, template: Template, side: str) -> bool:
        return all(self._rows(side, row, columns) for row, columns in template.needs().items())

    def _rows(self, side: str, row: str, columns: frozenset[str]) -> list[Fact]:
        facts = self.by_kind[side, row.rstrip("23456789")]
        return [fact for fact in facts if all(fact.values.get(column) for column in columns)]

    def _schedule(self, templates: Sequence[Template], count: int) -> Iterator[Template]:
        """Templates for `count` turns: kinds by their number of names, the templates of a kind in turn."""
        kinds: dict[str, list[Template]] = defaultdict(list)
        for template in templates:
            kinds[template.placeholders()[0][0]].append(template)
        sizes = {kind: max(len(self.by_kind[side, kind]) for side in LABELS) for kind in kinds}
        whole = sum(sizes.values())
        for kind, own in kinds.items():
            self.chance.shuffle(own)
            for turn in range(round(count * sizes[kind] / whole)):
                yield own[turn % len(own)]

    def _fill(self, template: Template, side: str) -> Example | None:
        """One example, or None where no row of the part's own names fits."""
        passed: list[Fact] = []
        for _ in range(PATIENCE):
            rows = self._pick(template, side, passed)
            if rows is None:
                return None
            texts = [_set(text, rows) for text in template.texts]
            if self.names.parts_of(texts) <= {self.part}:
                self.used.update((fact.side, fact.kind, fact.name) for fact in rows.values())
                return self._example(template, side, texts, rows)
            passed += rows.values()
        return None

    def _pick(self, template: Template, side: str, passed: Sequence[Fact]) -> dict[str, Fact] | None:
        """The least used row for every placeholder, each another one and none that was passed over."""
        picked: dict[str, Fact] = {}
        for row, columns in template.needs().items():
            fresh = [fact for fact in self._rows(side, row, columns) if fact not in passed and fact not in picked.values()]
            if not fresh:
                return None
            picked[row] = min(fresh, key=lambda fact: self.used[fact.side, fact.kind, fact.name])
        return picked

    def _example(self, template: Template, side: str, texts: Sequence[str], rows: Mapping[str, Fact]) -> Example:
        return Example(
            input=texts[-1],
            label=side if template.label == SHARED else template.label,
            context=tuple(texts[:-1]),
            area=template.area,
            register=template.register,
            source="facts",
            entities=tuple(sorted({normalise(fact.name) for fact in rows.values()})),
            template=template.id,
        )


def _set(text: str, rows: Mapping[str, Fact]) -> str:
    """A text with its placeholders filled."""
    return PLACEHOLDER.sub(lambda match: rows[match[1] + match[2]].values[match[3] or "name"], text)
