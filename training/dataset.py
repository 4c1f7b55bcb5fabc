"""The data set of a recipe: composed and written to `composed/`, then split into train, validation and test with a data card."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from fnmatch import fnmatch
from typing import Any

from guardrail.adapter import sha256_of
from training.data import Example, read_jsonl, unit_hash, write_json, write_jsonl, write_text
from training.errors import TrainingError
from training.generate import generate
from training.names import PARTS, Names, Part, build_names
from training.recipe import Borrow
from training.run import Run
from training.split import Split, split_examples
from training.topic import Topic, read_messages, read_topic


def compose(run: Run) -> dict[Part, list[Example]]:
    """Compose the examples of every part and write them."""
    topic, messages = _read(run)
    data = run.recipe.data
    rows: dict[Part, int] = {"train": data.composed, "validation": data.composed_held_out, "test": data.composed_held_out}
    names = _names(run, topic, messages)
    composed = generate(topic, names, rows, data.labelled, data.held_out, run.recipe.seed)
    for part, examples in composed.items():
        write_jsonl(run.composed / f"{part}.jsonl", examples)
    return composed


def assemble(run: Run) -> dict[str, Any]:
    """Put messages and composed examples into parts, write them, `data.json` and `DATA.md`; returns the data card's figures."""
    topic, messages = _read(run)
    composed = {part: _composed(run, part) for part in PARTS}
    split = split_examples(composed, messages, _names(run, topic, messages), run.recipe.data.held_out, run.recipe.seed)
    if not all(split.parts.values()):
        raise TrainingError(f"{run.recipe.topic}: a part is empty: { ({part: len(rows) for part, rows in split.parts.items()}) }")
    for part, examples in split.parts.items():
        write_jsonl(run.file(part), examples)
    card = _card(run, split)
    write_json(run.folder / "data.json", card)
    write_text(run.folder / "DATA.md", data_card(run.recipe.title, card))
    return card


def _read(run: Run) -> tuple[Topic, list[Example]]:
    topic = read_topic(run.topic(run.recipe.topic))
    borrowed = [message for borrow in run.recipe.data.borrow for message in _borrow(run, borrow)]
    return topic, [*topic.messages, *borrowed]


def _borrow(run: Run, borrow: Borrow) -> list[Example]:
    """Messages of another topic; where there are more than `most`, those with the lowest hash."""
    messages = read_messages(run.topic(borrow.topic) / "messages")
    fits = {each.origin for pattern in borrow.files for each in messages if fnmatch(each.origin.partition(":")[0], pattern)}
    taken = [each for each in messages if each.label == borrow.take and each.origin in fits]
    chosen = sorted(taken, key=lambda each: unit_hash("borrow", run.recipe.seed, each.key))[: borrow.most]
    return [replace(each, label=borrow.label, source=f"messages of {borrow.topic}") for each in chosen]


def _names(run: Run, topic: Topic, messages: Sequence[Example]) -> Names:
    return build_names((fact.name for fact in topic.facts), messages, run.recipe.data.held_out, run.recipe.seed)


def _composed(run: Run, part: Part) -> list[Example]:
    path = run.composed / f"{part}.jsonl"
    if not path.is_file():
        raise TrainingError(f"{path} is missing. Fix: python -m training generate {run.recipe.name}")
    return read_jsonl(path)


def _card(run: Run, split: Split) -> dict[str, Any]:
    parts = {part: _describe(examples) for part, examples in split.parts.items()}
    sums = {part: sha256_of(run.file(part)) for part in PARTS}
    return {"seed": run.recipe.seed, "parts": parts, "sha256": sums, "dropped": split.dropped, "conflicts": split.conflicts}


def _describe(examples: Sequence[Example]) -> dict[str, Any]:
    return {
        "examples": len(examples),
        "with_context": sum(bool(example.context) for example in examples),
        "names": len({entity for example in examples for entity in example.entities}),
        "templates": len({example.template for example in examples if example.template}),
        "label": _count(examples, lambda example: example.label),
        "source": _count(examples, lambda example: f"{example.source}, {example.label}"),
        "register": _count(examples, lambda example: example.register),
        "slice": _count(examples, lambda example: f"{example.area}, {example.label}"),
    }


def _count(examples: Sequence[Example], key: Callable[[Example], str]) -> dict[str, int]:
    return dict(sorted(Counter(key(example) for example in examples).items()))


def data_card(title: str, card: Mapping[str, Any]) -> str:
    """The data card as Markdown."""
    return "\n".join(_card_lines(title, card)) + "\n"


def _card_lines(title: str, card: Mapping[str, Any]) -> Iterator[str]:
    parts = card["parts"]
    yield f"# Data of: {title}"
    yield "\nParts are disjoint by name and by template; near-duplicates across them are out. Seed " + f"{card['seed']}.\n"
    yield from _table(
        "", {key: {part: parts[part][key] for part in PARTS} for key in ("examples", "with_context", "names", "templates")}
    )
    for key in ("label", "source", "register", "slice"):
        rows = sorted({row for part in PARTS for row in parts[part][key]})
        yield from ("", f"## By {key}", "")
        yield from _table(key, {row: {part: parts[part][key].get(row, 0) for part in PARTS} for row in rows})
    yield from ("", "## Left out", "")
    yield from (f"- {reason}: {count}" for reason, count in sorted(card["dropped"].items()))
    yield from (f"- two labels: {where}" for where in card["conflicts"])
    yield from ("", "## SHA-256", "")
    yield from (f"- {part}.jsonl: `{digest}`" for part, digest in card["sha256"].items())


def _table(head: str, rows: Mapping[str, Mapping[str, int]]) -> Iterator[str]:
    yield f"| {head} | {' | '.join(PARTS)} |"
    yield "|---|" + "---:|" * len(PARTS)
    yield from (f"| {name} | {' | '.join(str(row[part]) for part in PARTS)} |" for name, row in rows.items())
