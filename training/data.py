"""One labelled turn, and the JSONL that holds many.

The JSONL is the original model card's, `{"input": ..., "label": "related" | "not_related"}`, with optional `context` (earlier
user turns, oldest first), `slice`, `register`, `source`, `entities` and `template`; other keys are ignored.
"""

from __future__ import annotations

import hashlib
import json
import unicodedata
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from guardrail.chat import Turn
from training.errors import at

LABELS = ("not_related", "related")
"""In the order of the classifier's outputs."""


@dataclass(frozen=True, slots=True)
class Example:
    """A turn, its label, and where it comes from."""

    input: str
    label: str
    context: tuple[str, ...] = ()
    area: str = ""
    """What it is about: `tos_episodes`, `coding`; the `slice` of the JSONL."""
    register: str = ""
    """How it is said: `question`, `lowercase`, `ramble`."""
    source: str = ""
    """`messages`, `facts`, or what the JSONL says."""
    entities: tuple[str, ...] = ()
    """Fact names that it mentions, as `names.Names` finds them."""
    template: str = ""
    """Id of the template that a composed example was made from."""
    origin: str = ""
    """`FILE:LINE` of a hand-written message."""

    @property
    def target(self) -> int:
        """Index of the label among the classifier's outputs."""
        return LABELS.index(self.label)

    @property
    def turn(self) -> Turn:
        """What is scored."""
        return Turn(self.input, self.context)

    @property
    def key(self) -> str:
        """Normalised text with context: examples with one key read the same. Signs alone stand for themselves."""
        return "\n".join(normalise(text) or text for text in (*self.context, self.input))


def normalise(text: str) -> str:
    """Letters and digits only, NFKC, casefolded, single spaces."""
    folded = unicodedata.normalize("NFKC", text).casefold()
    return " ".join("".join(char if char.isalnum() else " " for char in folded).split())


def unit_hash(*parts: object) -> float:
    """A number in [0, 1) that depends on the parts alone: the same on every machine and in every run."""
    digest = hashlib.sha256("\x1f".join(str(part) for part in parts).encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def read_jsonl(path: Path) -> list[Example]:
    """Examples of a JSONL file. Raises `TrainingError` that names file and line."""
    lines = path.read_text(encoding="utf-8").splitlines()
    return [_read_row(path, number, line) for number, line in enumerate(lines, 1) if line.strip()]


def _read_row(path: Path, number: int, line: str) -> Example:
    try:
        row = json.loads(line)
    except ValueError as exc:
        raise at(path, number, f"not JSON ({exc})") from exc
    if not isinstance(row, dict) or not isinstance(row.get("input"), str):
        raise at(path, number, 'a row needs "input": a string')
    if row.get("label") not in LABELS:
        raise at(path, number, f"label {row.get('label')!r} is neither related nor not_related")
    return example_from(row)


def example_from(row: Mapping[str, Any]) -> Example:
    """An example from a JSONL row that has `input` and `label`."""
    return Example(
        input=row["input"],
        label=row["label"],
        context=tuple(row.get("context") or ()),
        area=row.get("slice", ""),
        register=row.get("register", ""),
        source=row.get("source", ""),
        entities=tuple(row.get("entities") or ()),
        template=row.get("template", ""),
        origin=row.get("origin", ""),
    )


def row_from(example: Example) -> dict[str, Any]:
    """The JSONL row of an example; empty fields are left out."""
    row = {
        "input": example.input,
        "label": example.label,
        "context": list(example.context),
        "slice": example.area,
        "register": example.register,
        "source": example.source,
        "entities": list(example.entities),
        "template": example.template,
        "origin": example.origin,
    }
    return {key: value for key, value in row.items() if value or key in ("input", "label")}


def write_jsonl(path: Path, examples: Iterable[Example]) -> None:
    """Write examples, one a line; whole or not at all."""
    text = "".join(json.dumps(row_from(example), ensure_ascii=False) + "\n" for example in examples)
    write_text(path, text)


def write_text(path: Path, text: str) -> None:
    """Write a file aside and rename it, so that a kill leaves the old one or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.new")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)


def write_json(path: Path, value: object) -> None:
    """Write a JSON file, indented; whole or not at all."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")
