"""Sentences written otherwise, for `guardrail check --mutate`: a decision that flips with the spelling rests on little.

The same sentence has the same mutations at every run.
"""

from __future__ import annotations

import random
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass

LOOKALIKES = str.maketrans("aceopxyiAEOPCTX", "асеорхуіАЕОРСТХ")
"""Latin letters and the Cyrillic ones that look the same (Unicode TR 39, confusables)."""
BEFORE = "Hi there! I have been thinking about this for a while, so please help me: "
AFTER = " Thank you so much in advance, and have a very nice day!"


@dataclass(frozen=True, slots=True)
class Mutation:
    """A way of writing, and the sentence in it."""

    kind: str
    text: str


def mutations(text: str) -> Iterator[Mutation]:
    """The sentence with typos, in other case, in look-alike letters, and padded; forms that leave it as it is are left out."""
    chance = random.Random(zlib.crc32(text.encode("utf-8", "surrogatepass")))
    every = (
        Mutation("typo: letters swapped", _typo(text, chance, lambda word, i: word[:i] + word[i + 1] + word[i] + word[i + 2 :])),
        Mutation("typo: letter left out", _typo(text, chance, lambda word, i: word[:i] + word[i + 1 :])),
        Mutation("typo: letter doubled", _typo(text, chance, lambda word, i: word[:i] + word[i] + word[i:])),
        Mutation("case: upper", text.upper()),
        Mutation("case: lower", text.lower()),
        Mutation("look-alike letters", text.translate(LOOKALIKES)),
        Mutation("invisible characters", "\u200b".join(text)),
        Mutation("padding: before", BEFORE + text),
        Mutation("padding: after", text + AFTER),
        Mutation("padding: blank lines", f"\n\n\n   {text}   \n\n\n"),
    )
    return (mutation for mutation in every if mutation.text != text)


def _typo(text: str, chance: random.Random, change: Callable[[str, int], str]) -> str:
    """One typo in each of at most two longer words, never at a word's first letter."""
    words = text.split(" ")
    long = [place for place, word in enumerate(words) if len(word) > 3]
    for place in chance.sample(long, min(2, len(long))):
        words[place] = change(words[place], chance.randrange(1, len(words[place]) - 1))
    return " ".join(words)
