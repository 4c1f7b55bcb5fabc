"""What can go wrong, as one tree.

    GuardrailError
    ├── ConfigError            the config file is wrong: every mistake at once, each with line, key and fix
    ├── AdapterError           an adapter folder cannot be used
    │   ├── BaseModelError     its base weights are missing or are not the ones it was trained on
    │   └── CanaryError        it loads, but does not score its canary texts as it did when it was trained
    ├── UnreadableError        a message holds no text that could be judged; nothing was scored
    └── ScoringError           the guard could not score a turn: `on_error` of the policy decides
        ├── OverloadedError    the queue is full; try again after `retry_after` seconds
        └── ClosedError        the engine was closed while the turn was waiting

A refusal is an outcome, not an error: see `guardrail.Refused`.
"""

from __future__ import annotations

from dataclasses import dataclass


class GuardrailError(Exception):
    """Base of everything that guardrail raises on purpose; the message is fit to be shown to an operator."""


@dataclass(frozen=True, slots=True)
class Problem:
    """One mistake in a config file: where it is, what is wrong and what to do about it."""

    file: str
    line: int | None
    key: str
    reason: str
    fix: str = ""

    def __str__(self) -> str:
        """`guardrail.yaml:3: topics.star_trek.adapter: no such adapter. Fix: ...`."""
        place = self.file if self.line is None else f"{self.file}:{self.line}"
        key = f" {self.key}:" if self.key else ""
        fix = f"{'' if self.reason.endswith('.') else '.'} Fix: {self.fix}" if self.fix else ""
        return f"{place}:{key} {self.reason}{fix}"


class ConfigError(GuardrailError):
    """The config file is wrong; `problems` holds every mistake that was found."""

    def __init__(self, problems: list[Problem]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(str(problem) for problem in problems))


class AdapterError(GuardrailError):
    """An adapter folder cannot be used."""


class BaseModelError(AdapterError):
    """The base weights of an adapter are missing, or are not the ones it was trained on."""


class CanaryError(AdapterError):
    """An adapter does not score its canary texts as it did when it was trained."""


class UnreadableError(GuardrailError):
    """A message holds something that cannot be judged as text; `param` names it in OpenAI's notation."""

    def __init__(self, message: str, param: str = "messages") -> None:
        super().__init__(message)
        self.param = param


class ScoringError(GuardrailError):
    """The guard could not score a turn."""


class OverloadedError(ScoringError):
    """The queue is full; `retry_after` is in seconds."""

    def __init__(self, message: str, retry_after: float) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class ClosedError(ScoringError):
    """The engine was closed while the turn was waiting."""
