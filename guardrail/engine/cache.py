"""Compiled adapters on disk: one folder each, named by a hash of all that its scores depend on.

    compiled/NAME-KEY/
        model.onnx, tokenizer.json
        digests.json               SHA-256 of each; a folder that does not agree with it is made again

A folder is written aside and renamed, under a lock: processes that start at once compile once, and one that is killed leaves
nothing half done.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from guardrail.adapter import MANIFEST, Adapter, sha256_of
from guardrail.engine.int8 import write_compiled
from guardrail.engine.store import cache_home, exclusive, sha256_once
from guardrail.engine.weights import is_peft, load_merged, load_tokenizer, resolve_base, tokenizer_folder, weights_sha256
from guardrail.errors import AdapterError

FORMAT = 2
"""Of the compiled form; a new number makes every adapter be compiled again."""
DIGESTS = "digests.json"

logger = logging.getLogger(__name__)


def compile_adapter(adapter: Adapter, out: Path) -> Path:
    """Compile for the CPU into `out`, which serves as GUARDRAIL_CACHE where torch and the base are missing; returns the folder.

    Raises `AdapterError` where the adapter cannot be loaded or the folder not be written.
    """
    return compiled(adapter, home=out)


def compiled(adapter: Adapter, near: Path | None = None, home: Path | None = None) -> Path:
    """Folder of an adapter's compiled form, made now if it is not there or damaged. Raises `AdapterError`."""
    parent = cache_home(home) / "compiled"
    folder = parent / f"{re.sub(r'[^A-Za-z0-9.-]', '_', adapter.manifest.name)}-{_key(adapter, near)}"
    if _intact(folder):
        return folder
    try:
        parent.mkdir(parents=True, exist_ok=True)
        with exclusive(parent / f"{folder.name}.lock"):
            if not _intact(folder):
                _compile(adapter, near, folder)
    except OSError as exc:
        raise AdapterError(f"{folder}: cannot be written ({exc}). Fix: point GUARDRAIL_CACHE to a folder that can") from exc
    return folder


def _key(adapter: Adapter, near: Path | None) -> str:
    """Hash of what the scores come from; calibration and canaries are read from the manifest at each start and stay out."""
    from onnxruntime import __version__

    manifest = adapter.manifest
    files = sorted([*adapter.folder.glob("*.safetensors"), *adapter.folder.glob("*.json")])
    lines = [f"{path.name} {sha256_once(path)}" for path in files if path.name != MANIFEST]
    lines += [f"format {FORMAT}", f"onnxruntime {__version__.partition('.')[0]}", f"{manifest.kind} {manifest.positive}"]
    if is_peft(adapter):
        lines.append(f"base {manifest.base.sha256 or weights_sha256(resolve_base(manifest.base, near))}")
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:24]


def _intact(folder: Path) -> bool:
    try:
        digests = json.loads((folder / DIGESTS).read_text(encoding="utf-8"))
        return bool(digests) and all(sha256_of(folder / name) == digest for name, digest in digests.items())
    except (OSError, ValueError, AttributeError):
        return False


def _compile(adapter: Adapter, near: Path | None, folder: Path) -> None:
    aside = folder.with_name(f"{folder.name}.new")
    for leftover in (aside, folder):
        shutil.rmtree(leftover, ignore_errors=True)
    aside.mkdir()
    with _announced(adapter):
        base = resolve_base(adapter.manifest.base, near) if is_peft(adapter) else adapter.folder
        write_compiled(load_merged(adapter, near), adapter, aside)
        load_tokenizer(tokenizer_folder(adapter, base)).save(str(aside / "tokenizer.json"))
    digests = {path.name: sha256_of(path) for path in sorted(aside.iterdir())}
    (aside / DIGESTS).write_text(json.dumps(digests, indent=2) + "\n", encoding="utf-8")
    aside.rename(folder)


@contextmanager
def _announced(adapter: Adapter) -> Iterator[None]:
    """Say that it takes a while: a line in the log, and on a terminal a spinner."""
    text = f"compiling {adapter.manifest.name} for this computer, once"
    logger.info(text)
    if not sys.stderr.isatty():
        yield
        return
    from rich.console import Console

    with Console(stderr=True).status(text):
        yield
