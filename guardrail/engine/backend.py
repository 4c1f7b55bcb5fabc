"""What runs a model: encoded rows in, one logit a row out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from guardrail.adapter import Form
from guardrail.engine.encoding import Encoded


class Backend(Protocol):
    """One loaded model; `score` may be called from `workers` threads at once."""

    form: Form
    max_batch_tokens: int
    """Tokens that are worth one forward pass; 0: rows are run one by one."""
    workers: int

    def score(self, batch: Sequence[Encoded]) -> list[float]:
        """logit_related - logit_not_related of each row."""
        ...
