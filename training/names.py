"""Which names a text mentions, and which part (train, validation, test) a name belongs to.

A name is tracked when it can be recognised: at least four letters, not of common words alone ("Data", "The Ship"). A
name of several words is also recognised by any word of it that belongs to no other name ("Picard" for Jean-Luc Picard). Names
with the same last word stand together as one *entity* (the Crushers), so that no family is torn apart. What is not tracked, and
what more than `famous` messages mention, belongs to train: a judge that never heard of Sulu is no use.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from training.data import Example, normalise, unit_hash

Part = Literal["train", "validation", "test"]
PARTS: tuple[Part, ...] = ("train", "validation", "test")
LONGEST = 8
"""Words of the longest name that is looked for."""


def part_of(share: float, *key: object) -> Part:
    """The part of a key by its hash: `share` of all keys is test, as much again is validation."""
    place = unit_hash(*key)
    return "test" if place < share else "validation" if place < 2 * share else "train"


def common_words(texts: Iterable[str], usual: float = 0.3) -> frozenset[str]:
    """Words that are written in lower case twice or more, and in `usual` of all cases, by texts that use capitals at all."""
    lower: Counter[str] = Counter()
    every: Counter[str] = Counter()
    for text in texts:
        if any(char.isupper() for char in text):
            words = set(_words(text))
            lower.update(word for word in words if word.islower())
            every.update({word.casefold() for word in words})
    return frozenset(word for word, count in lower.items() if count > 1 and count >= usual * every[word])


def _words(text: str) -> list[str]:
    """Words of a text as `data.normalise` cuts them, but with their capitals."""
    return "".join(char if char.isalnum() else " " for char in text).split()


@dataclass(frozen=True, slots=True)
class Names:
    """Phrase -> entity, and entity -> part."""

    phrases: Mapping[str, str]
    parts: Mapping[str, Part]

    def mentions(self, texts: Iterable[str]) -> tuple[str, ...]:
        """Entities that texts mention, sorted; the longest phrase wins where two overlap."""
        return tuple(sorted({entity for text in texts for entity in self._in(normalise(text).split())}))

    def _in(self, words: list[str]) -> Iterable[str]:
        start = 0
        while start < len(words):
            for length in range(min(LONGEST, len(words) - start), 0, -1):
                entity = self.phrases.get(" ".join(words[start : start + length]))
                if entity is not None:
                    yield entity
                    break
            start += length

    def parts_of(self, texts: Iterable[str]) -> frozenset[Part]:
        """Parts of the entities that texts mention."""
        return frozenset(self.parts[entity] for entity in self.mentions(texts))


def build_names(names: Iterable[str], messages: Iterable[Example], share: float, seed: int, famous: int = 5) -> Names:
    """Track names; `share` of the entities is test, as much validation; one in more than `famous` messages is train's."""
    texts = [[*message.context, message.input] for message in messages]
    common = common_words(text for turn in texts for text in turn)
    phrases = _phrases({normalise(name) for name in names}, common)
    untied = Names(phrases, {})
    counts = Counter(entity for turn in texts for entity in untied.mentions(turn))
    parts = {entity: part_of(share, seed, entity) if counts[entity] <= famous else "train" for entity in set(phrases.values())}
    return Names(phrases, parts)


def _phrases(names: set[str], common: frozenset[str]) -> dict[str, str]:
    """Phrase -> entity: every full name, and the words that belong to one entity alone."""
    phrases = {name: _entity(name, common) for name in sorted(names) if _tracked(name, common)}
    owners: dict[str, set[str]] = defaultdict(set)
    for name, entity in phrases.items():
        for word in name.split():
            owners[word].add(entity)
    words = {word: min(entities) for word, entities in owners.items() if len(entities) == 1 and _tracked(word, common)}
    return words | phrases


def _entity(name: str, common: frozenset[str]) -> str:
    last = name.split()[-1]
    return last if _tracked(last, common) else name


def _tracked(phrase: str, common: frozenset[str]) -> bool:
    words = phrase.split()
    telling = [word for word in words if word not in common and sum(char.isalpha() for char in word) > 1]
    return bool(telling) and sum(char.isalpha() for char in phrase) >= 4 and len(words) <= LONGEST
