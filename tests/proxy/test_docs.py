"""docs/proxy.md says what the code does."""

from __future__ import annotations

import ast
import re
from pathlib import Path

from guardrail.config import ProxyConfig, UpstreamConfig
from guardrail.proxy.endpoints import ENDPOINTS
from guardrail.proxy.headers import MAX_BYTES, MAX_COUNT

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "proxy.md").read_text(encoding="utf-8")


def section(title: str) -> str:
    return PAGE.partition(f"\n## {title}\n")[2].partition("\n## ")[0]


def rows(title: str) -> list[list[str]]:
    """Cells of a section's table, without its head."""
    lines = [line for line in section(title).splitlines() if line.startswith("|")]
    return [[cell.strip().strip("`") for cell in line.strip("|").split("|")] for line in lines[2:]]


def test_endpoints() -> None:
    """The table of endpoints is the code's."""
    assert rows("Endpoints") == [[row.method, row.path, row.kind.value, row.about] for row in ENDPOINTS]


def codes() -> set[str]:
    """Every error code in the source: a string of one word in a call that makes an error."""
    found = set()
    for path in (ROOT / "guardrail" / "proxy").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            name = node.func.id if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) else ""
            if name in ("ApiError", "retry_later", "invalid"):
                texts = [arg.value for arg in node.args if isinstance(arg, ast.Constant)]  # type: ignore[attr-defined]
                position = {"ApiError": slice(0, 2), "retry_later": slice(0, 1), "invalid": slice(-1, None)}[name]
                found |= {text for text in texts[position] if isinstance(text, str) and re.fullmatch(r"[a-z]+(_[a-z]+)+", text)}
    return found


def test_codes() -> None:
    """Every code is explained, and every explained code exists."""
    explained = {code for _, code, _ in rows("Errors")}
    source = codes()
    assert len(source) > 15
    assert source - {"previous_response_id"} <= explained
    everything = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "guardrail" / "proxy").rglob("*.py"))
    assert [code for code in explained if f'"{code}"' not in everything] == []


def test_defaults() -> None:
    """Times and limits are those of the config."""
    upstream = UpstreamConfig(url="http://x/v1")
    for name, default, _ in rows("Times and limits"):
        value = getattr(upstream if name.startswith("upstreams") else ProxyConfig(), name.removeprefix("upstreams.*."))
        number, _, unit = default.partition(" ")
        assert float(number) * {"s": 1, "MiB": 2**20, "": 1}[unit] == value, name
    assert f"{MAX_COUNT} headers or {MAX_BYTES // 1024} KiB" in PAGE
