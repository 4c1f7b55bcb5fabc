"""Base weights: where they lie, and models and tokenizers made from them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from guardrail.adapter import Adapter, Base

if TYPE_CHECKING:
    from tokenizers import Tokenizer


def resolve_base(base: Base, near: Path | None = None) -> Path:
    """Folder or GGUF file with an adapter's base weights; raises `BaseModelError`."""
    raise NotImplementedError


def weights_sha256(path: Path) -> str:
    """SHA-256 of the weights in a folder, or of a GGUF file."""
    raise NotImplementedError


def load_tokenizer(path: Path) -> Tokenizer:
    """Tokenizer of a model folder or GGUF file: no padding, no truncation, special tokens in a text are plain text."""
    raise NotImplementedError


def load_classifier(path: Path, *, num_labels: int = 2, dtype: Any = None) -> Any:
    """`AutoModelForSequenceClassification` of a folder or GGUF file."""
    raise NotImplementedError


def load_merged(adapter: Adapter, near: Path | None = None, dtype: Any = None) -> Any:
    """The adapter's model for inference: base with the LoRA weights merged in, or a merged checkpoint as it is."""
    raise NotImplementedError
