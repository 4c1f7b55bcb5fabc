"""What can go wrong in training; shown by the command line as one line with exit code 2."""

from __future__ import annotations

from pathlib import Path

from guardrail.errors import GuardrailError


class TrainingError(GuardrailError):
    """An input of training is wrong or missing; the message names the file and the fix."""


def at(path: Path, line: int, reason: str, fix: str = "") -> TrainingError:
    """`messages/general.txt:12: reason. Fix: ...`."""
    return TrainingError(f"{path}:{line}: {reason}" + (f". Fix: {fix}" if fix else ""))
