"""The forms in which a text is read: as written and, where that differs, with its disguise taken off."""

from __future__ import annotations


def views(text: str) -> tuple[str, ...]:
    """The text as written and, only where it differs materially, normalised."""
    raise NotImplementedError


def normalise(text: str) -> str:
    """The text with its disguise taken off; plain text comes back as it is."""
    raise NotImplementedError
