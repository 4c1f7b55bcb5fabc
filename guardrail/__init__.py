"""guardrail keeps a chatbot on its topic.

>>> from guardrail import guarded
>>> @guarded("guardrail.yaml")
... def chat(message: str) -> str: ...
"""

from guardrail.decorator import guarded
from guardrail.errors import AdapterError, ConfigError, GuardrailError, ScoringError
from guardrail.guard import Guard, Refused
from guardrail.policy import Action, Decision, Policy

__all__ = [
    "Action",
    "AdapterError",
    "ConfigError",
    "Decision",
    "Guard",
    "GuardrailError",
    "Policy",
    "Refused",
    "ScoringError",
    "guarded",
]
__version__ = "0.1.0"
