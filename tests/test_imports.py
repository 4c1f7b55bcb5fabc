"""The structure: imports go one way, and `import guardrail` is light."""

from __future__ import annotations

import ast
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parent.parent
ORDER = [
    *(
        "errors",
        "chat",
        "scoring",
        "policy",
        "audit",
        "replay",
        "adapter",
        "yaml_lines",
        "language",
        "config",
        "reference",
        "engine",
        "history",
        "mutations",
        "judging",
    ),
    *("guard", "reload", "decorator", "client", "jsonl", "proxy", "assistant", "bench", "demo", "cli"),
]


def modules() -> Iterator[tuple[str, Path]]:
    """Top-level part of guardrail that a file belongs to, and the file."""
    for path in sorted((ROOT / "guardrail").rglob("*.py")):
        part = path.relative_to(ROOT / "guardrail").parts[0].removesuffix(".py")
        if part not in ("__init__", "testing"):
            yield part, path


def imported(path: Path) -> Iterator[str]:
    """Names of the guardrail parts and other packages that a file imports, type checking apart."""
    for node in _run_time(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            yield node.module or ""
            if node.module == "guardrail":
                yield from (f"guardrail.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


def _run_time(node: ast.AST) -> Iterator[ast.AST]:
    for child in ast.iter_child_nodes(node):
        if not (isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING"):
            yield child
            yield from _run_time(child)


def test_every_part_has_its_place() -> None:
    """A new module is put into the order on purpose."""
    assert {part for part, _ in modules()} <= set(ORDER)


def test_imports_go_one_way() -> None:
    """A module imports only from parts above its own, inside functions too."""
    wrong = [
        f"{path.relative_to(ROOT)} imports {name}"
        for part, path in modules()
        for name in imported(path)
        if name.startswith("guardrail.")
        and (target := name.split(".")[1]) in ORDER
        and target != part
        and ORDER.index(target) > ORDER.index(part)
    ]
    assert wrong == []


def test_guardrail_never_imports_training() -> None:
    """The training package builds on guardrail, never the reverse."""
    assert [str(path) for _, path in modules() if any(name.split(".")[0] == "training" for name in imported(path))] == []


def test_import_is_light() -> None:
    """`import guardrail` loads neither torch nor a web stack nor a config reader, and is done in 0.3 s of processor time."""
    heavy = [
        "torch",
        "transformers",
        "onnxruntime",
        "numpy",
        "aiohttp",
        "uvicorn",
        "openai",
        "httpx",
        "pydantic",
        "yaml",
        "typer",
    ]
    code = f"import guardrail, sys, time; print([m for m in {heavy} if m in sys.modules], time.process_time())"
    best = 9.9
    for _ in range(3):
        out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT).stdout
        found, seconds = out.rsplit(" ", 1)
        assert found == "[]"
        best = min(best, float(seconds))
        time.sleep(0.05)
    assert best < 0.3


def test_public_names() -> None:
    """Everything public is in `__all__`, sorted, and can be had."""
    import guardrail

    assert guardrail.__all__ == sorted(guardrail.__all__)
    assert all(getattr(guardrail, name) is not None for name in guardrail.__all__)
