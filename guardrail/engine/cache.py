"""Compiled adapters on disk."""

from __future__ import annotations

from pathlib import Path

from guardrail.adapter import Adapter


def compile_adapter(adapter: Adapter, out: Path) -> Path:
    """Compile for the CPU into `out`, which can then be given as GUARDRAIL_CACHE; returns the compiled folder."""
    raise NotImplementedError
