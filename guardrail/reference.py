"""The JSON Schema of guardrail.yaml, and the reference page `docs/configuration.md` that is made from it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from guardrail.config import Config

DIALECT = "https://json-schema.org/draft/2020-12/schema"
Schema = Mapping[str, Any]
HEAD = """\
# The config file

Made by `guardrail schema --markdown`; do not edit. `guardrail schema` prints the JSON Schema: an editor with a YAML language
server completes and checks a file that begins with `# yaml-language-server: $schema=guardrail.schema.json`.

Unknown keys, unknown names and unset `${VARIABLES}` are errors at the start, told all at once with line and fix. Paths are
relative to the config file. What the policy keys mean is told in [policies.md](policies.md), the log in
[decision-log.md](decision-log.md).
"""


def schema() -> dict[str, Any]:
    """JSON Schema (2020-12) of the config file."""
    return {"$schema": DIALECT, **Config.model_json_schema(), "title": "guardrail.yaml"}


def markdown() -> str:
    """The reference page: a table of keys for the file and for each mapping in it."""
    whole = schema()
    sections = [HEAD, *_section("The file", whole, whole)]
    for name in _in_order(whole):
        part = whole["$defs"][name]
        if part.get("properties"):
            sections += _section(name, part, whole)
    return "\n".join(sections).rstrip() + "\n"


def _in_order(whole: Schema) -> Iterator[str]:
    """Names of the parts in the order in which they are first mentioned."""
    seen: list[str] = []
    waiting: list[object] = [whole["properties"]]
    while waiting:
        place = waiting.pop(0)
        if isinstance(place, dict):
            name = str(place.get("$ref", "")).rpartition("/")[2]
            if name and name not in seen:
                seen.append(name)
                waiting.append(whole["$defs"][name])
            waiting += place.values()
        elif isinstance(place, list):
            waiting += place
    yield from seen


def _section(name: str, part: Schema, whole: Schema) -> Iterator[str]:
    yield f"## {name}\n"
    if name != "The file":
        yield f"{_flat(part.get('description', ''))}\n"
    yield "| key | value | default | meaning |"
    yield "|---|---|---|---|"
    required = part.get("required", [])
    for key, value in part["properties"].items():
        default = "required" if key in required else _default(value)
        yield f"| `{key}` | {_type(value, whole)} | {default} | {_flat(value.get('description', ''))} |"
    extra = part.get("additionalProperties")
    if isinstance(extra, dict):
        yield f"| NAME | {_type(extra, whole)} | | a topic |"
    yield ""


def _type(value: Schema, whole: Schema) -> str:
    if "$ref" in value:
        return _named(value["$ref"].rpartition("/")[2], whole)
    if "anyOf" in value:
        return " or ".join(dict.fromkeys(_type(option, whole) for option in value["anyOf"] if option.get("type") != "null"))
    if "allOf" in value:
        return " ".join(_type(option, whole) for option in value["allOf"])
    if "enum" in value or "const" in value:
        return ", ".join(f"`{choice}`" for choice in value.get("enum", [value.get("const")]))
    if value.get("type") == "array":
        return f"list of {_type(value['items'], whole)}"
    if value.get("type") == "object":
        extra = value.get("additionalProperties")
        return f"mapping of name to {_type(extra, whole)}" if isinstance(extra, dict) else "mapping"
    return _bounded(value)


def _named(name: str, whole: Schema) -> str:
    part = whole["$defs"][name]
    return _type(part, whole) if "enum" in part else f"[{name}](#{name.lower()})"


def _bounded(value: Schema) -> str:
    words = {"minimum": "at least", "exclusiveMinimum": "more than", "maximum": "at most"}
    bounds = [f"{word} {value[key]:g}" for key, word in words.items() if key in value]
    kind = {"string": "text", "integer": "whole number", "boolean": "true or false"}.get(value["type"], str(value["type"]))
    return ", ".join([kind, *bounds])


def _default(value: Schema) -> str:
    default = value.get("default")
    if default in (None, "", [], {}):
        return ""
    if isinstance(default, dict):
        return ""
    text = default[0] if isinstance(default, list) and len(default) == 1 else default
    return f"`{str(text).lower() if isinstance(text, bool) else text}`"


def _flat(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")
