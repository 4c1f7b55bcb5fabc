r"""A topic folder: what people say, what there is to know, and the forms to say it in.

    GUIDE.md                            how to label
    messages/*.txt                      hand-written messages
    facts/related/KIND.csv              names of a kind (`characters`, `ships`) with attributes
    facts/not_related/KIND.csv          names of the same kinds that belong elsewhere
    facts/templates.txt                 forms with placeholders for them
    bench/*.txt                         messages that are only measured on

Message files: UTF-8, one message a line. `## label | area | register` starts a section, `# ` a comment. `\n` in a message is a
line break, a leading `\#` a literal `#`; earlier user turns come first, separated by ` ||| `.

Templates are written the same way. `{ships}` is a name of that kind, `{ships.class}` an attribute of the same row, `{ships2}`
another row. The label `shared` means: filled from both sides, and the label is that of the side the names are from, so that
only the names decide. A template with a label of its own is filled with the topic's names (a costume: "As {characters}, write
my cover letter").
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from training.data import LABELS, Example
from training.errors import TrainingError, at

SHARED = "shared"
PLACEHOLDER = re.compile(r"\{([a-z_]+)([2-9]?)(?:\.([a-z_]+))?\}")


@dataclass(frozen=True, slots=True)
class Fact:
    """One row of a fact file: `values` holds the name under "name" and the attributes under their columns."""

    side: str
    kind: str
    values: Mapping[str, str]

    @property
    def name(self) -> str:
        """The name."""
        return self.values["name"]


@dataclass(frozen=True, slots=True)
class Template:
    """A form to be filled: `texts` holds the earlier turns and the last one."""

    id: str
    label: str
    area: str
    register: str
    texts: tuple[str, ...]

    def placeholders(self) -> list[tuple[str, str, str]]:
        """Kind, row number ("" for the first) and attribute ("" for the name), in the order of the text."""
        return [match.groups() for text in self.texts for match in PLACEHOLDER.finditer(text)]  # type: ignore[misc]

    def needs(self) -> dict[str, frozenset[str]]:
        """Row (`characters`, `characters2`) -> the columns that it must have."""
        rows: dict[str, frozenset[str]] = {}
        for kind, number, attribute in self.placeholders():
            rows[kind + number] = rows.get(kind + number, frozenset()) | {attribute or "name"}
        return rows


@dataclass(frozen=True, slots=True)
class Topic:
    """A topic folder, read."""

    name: str
    messages: tuple[Example, ...]
    facts: tuple[Fact, ...]
    templates: tuple[Template, ...]


def read_topic(folder: Path) -> Topic:
    """Read a topic folder. Raises `TrainingError` that names file and line."""
    if not folder.is_dir():
        raise TrainingError(f"{folder}: no such topic folder. Fix: lay it out as training/topics/star_trek/ is")
    facts = tuple(fact for side in LABELS for fact in _read_side(folder / "facts" / side, side))
    templates = _read_templates(folder / "facts" / "templates.txt", facts)
    return Topic(folder.name, read_messages(folder / "messages"), facts, templates)


def read_messages(folder: Path) -> tuple[Example, ...]:
    """The messages of every .txt file in a folder, in the order of file and line."""
    return tuple(example for path in sorted(folder.glob("*.txt")) for example in _read_messages(path))


def _read_messages(path: Path) -> Iterator[Example]:
    for number, header, texts in _sections(path, LABELS):
        label, area, register = header
        *context, text = texts
        origin = f"{path.name}:{number}"
        yield Example(text, label, tuple(context), area, register, source="messages", origin=origin)


def _sections(path: Path, labels: tuple[str, ...]) -> Iterator[tuple[int, tuple[str, str, str], list[str]]]:
    """Line number, header and turns of every message line."""
    header: tuple[str, str, str] | None = None
    for number, line in enumerate(_text(path).split("\n"), 1):
        line = line.strip()
        if line.startswith("## "):
            header = _header(path, number, line, labels)
        elif line and not line.startswith("# ") and line != "#":
            if header is None:
                raise at(path, number, "a message before the first `## label | area | register` line")
            yield number, header, _turns(path, number, line)


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as exc:
        raise TrainingError(f"{path}: not UTF-8 at byte {exc.start}") from exc


def _header(path: Path, number: int, line: str, labels: tuple[str, ...]) -> tuple[str, str, str]:
    parts = [part.strip() for part in line.removeprefix("## ").split("|")]
    if len(parts) != 3 or not all(parts):
        raise at(path, number, f"header {line!r} is not `## label | area | register`")
    if parts[0] not in labels:
        raise at(path, number, f"label {parts[0]!r} is unknown", f"use one of {', '.join(labels)}")
    return parts[0], parts[1], parts[2]


def _turns(path: Path, number: int, line: str) -> list[str]:
    turns = [turn.strip().replace("\\n", "\n") for turn in line.split(" ||| ")]
    turns = [turn.removeprefix("\\") if turn.startswith("\\#") else turn for turn in turns]
    if not all(turns) or "|||" in line.replace(" ||| ", ""):
        raise at(path, number, "an empty turn", "separate turns by ` ||| ` with a space on both sides")
    return turns


def _read_side(folder: Path, side: str) -> Iterator[Fact]:
    for path in sorted(folder.glob("*.csv")):
        yield from _read_facts(path, side)


def _read_facts(path: Path, side: str) -> Iterator[Fact]:
    rows = csv.reader(io.StringIO(_text(path)), strict=True)
    columns = next(rows, [])
    if not columns or columns[0] != "name" or len(set(columns)) != len(columns):
        raise at(path, 1, f"columns {columns} are not `name` and then different attributes")
    for row in rows:
        if len(row) != len(columns):
            raise at(path, rows.line_num, f"{len(row)} fields where the first line names {len(columns)}", "quote commas")
        values = {column: value.strip() for column, value in zip(columns, row, strict=True)}
        if not values["name"]:
            raise at(path, rows.line_num, "the name is empty")
        yield Fact(side, path.stem, values)


def _read_templates(path: Path, facts: tuple[Fact, ...]) -> tuple[Template, ...]:
    if not path.is_file():
        return ()
    columns: dict[tuple[str, str], set[str]] = {}
    for fact in facts:
        columns.setdefault((fact.side, fact.kind), set()).update(fact.values)
    return tuple(_read_template(path, *section, columns) for section in _sections(path, (*LABELS, SHARED)))


def _read_template(
    path: Path, number: int, header: tuple[str, str, str], texts: list[str], columns: Mapping[tuple[str, str], set[str]]
) -> Template:
    label, area, register = header
    template = Template(" ||| ".join(texts), label, area, register, tuple(texts))
    if not template.placeholders():
        raise at(path, number, "a template without a placeholder", "write {KIND}, or move the line to messages/")
    for side in LABELS if label == SHARED else ("related",):
        for row, needed in template.needs().items():
            missing = needed - columns.get((side, row.rstrip("23456789")), set())
            if missing:
                raise at(path, number, f"{{{row}}} needs facts/{side}/{row.rstrip('23456789')}.csv with {sorted(missing)}")
    return template
