"""YAML with the line of every key: plain values, and a map from a key's path to its line, so that errors can name it."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from guardrail.errors import ConfigError, Problem

Key = tuple[str | int, ...]
VARIABLE = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)\}")


@dataclass(slots=True)
class Document:
    """A parsed file; `problems` collects what was wrong with it so far."""

    file: str
    data: Any  # whatever the file holds; `config` checks it
    lines: dict[Key, int] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)

    def line(self, key: Key) -> int | None:
        """Line of a key, or of the nearest key around it."""
        for length in range(len(key), -1, -1):
            if key[:length] in self.lines:
                return self.lines[key[:length]]
        return None

    def report(self, key: Key, reason: str, fix: str = "") -> None:
        """Note a mistake at a key."""
        self.problems.append(Problem(self.file, self.line(key), dotted(key), reason, fix))


def dotted(key: Key) -> str:
    """`("rules", 0, "do")` as `rules[0].do`."""
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in key).lstrip(".")


def read_yaml(path: Path, environment: Mapping[str, str] | None = None) -> Document:
    """Parse a file and put variables of the environment (the process's by default) in for `${NAME}`.

    Raises `ConfigError` for a file that cannot be read or is no YAML; an unset variable or a key given twice is only noted.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as exc:
        reason = f"cannot be read: {exc}"
        raise ConfigError([Problem(str(path), None, "", reason, "name a readable UTF-8 file")]) from exc
    return parse_yaml(text, str(path), os.environ if environment is None else environment)


def parse_yaml(text: str, file: str, environment: Mapping[str, str]) -> Document:
    """As `read_yaml`, from a text."""
    document = Document(file, None)
    loader = yaml.SafeLoader(text)
    try:
        node = loader.get_single_node()
        if node is not None:
            document.data = _value(node, (), document, loader, environment)
    except yaml.MarkedYAMLError as exc:
        line = exc.problem_mark.line + 1 if exc.problem_mark else None
        raise ConfigError([Problem(file, line, "", f"not valid YAML: {exc.problem}", "mend the syntax at this line")]) from exc
    except (yaml.YAMLError, RecursionError) as exc:
        raise ConfigError([Problem(file, None, "", f"not valid YAML: {exc}", "mend the syntax")]) from exc
    finally:
        loader.dispose()
    return document


def _value(node: yaml.Node, key: Key, document: Document, loader: yaml.SafeLoader, environment: Mapping[str, str]) -> object:
    document.lines.setdefault(key, node.start_mark.line + 1)
    if isinstance(node, yaml.MappingNode):
        return _mapping(node, key, document, loader, environment)
    if isinstance(node, yaml.SequenceNode):
        return [_value(item, (*key, index), document, loader, environment) for index, item in enumerate(node.value)]
    value = loader.construct_object(node, deep=True)
    return _filled(value, key, document, environment) if isinstance(value, str) else value


def _mapping(
    node: yaml.MappingNode, key: Key, document: Document, loader: yaml.SafeLoader, environment: Mapping[str, str]
) -> dict[str, object]:
    mapping: dict[str, object] = {}
    for name_node, value_node in node.value:
        name = str(name_node.value)
        path = (*key, name)
        document.lines[path] = name_node.start_mark.line + 1
        if name in mapping:
            document.report(path, "is given twice", "keep one of them")
        mapping[name] = _value(value_node, path, document, loader, environment)
    return mapping


def _filled(text: str, key: Key, document: Document, environment: Mapping[str, str]) -> str:
    for name in VARIABLE.findall(text):
        if name not in environment:
            document.report(key, f"the environment variable {name} is not set", f"export {name}=... before the start")
    return VARIABLE.sub(lambda match: environment.get(match[1], match[0]), text)
