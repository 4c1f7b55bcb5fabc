"""The text of a conversation: OpenAI messages in, one `Turn` out.

A turn is what the user says *now*: the user messages after the last assistant reply, joined, because two messages in a row are
answered as one. Its context is the user turns before it, oldest first.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

from guardrail.errors import UnreadableError

ROLES = frozenset({"system", "developer", "user", "assistant", "tool", "function"})


@dataclass(frozen=True, slots=True)
class Message:
    """One message of a conversation, its content parts joined to one text."""

    role: str
    text: str


@dataclass(frozen=True, slots=True)
class Turn:
    """What is judged: the user's text and the earlier user turns that are scored along with it, oldest first."""

    text: str
    context: tuple[str, ...] = ()


def content_text(content: object, param: str) -> str:
    """Text of an OpenAI `content`: a string, null, or a list of `text` parts joined by line breaks.

    Raises `UnreadableError` for a part that is no text (an image, audio, a file): it could carry a request that nobody judged.
    """
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    if isinstance(content, Sequence):
        return "\n".join(_part_text(part, f"{param}[{index}]") for index, part in enumerate(content))
    raise UnreadableError(f"content must be a string or a list of parts, not {type(content).__name__}", param)


def _part_text(part: object, param: str) -> str:
    if isinstance(part, Mapping):
        kind = part.get("type")
        key = {"text": "text", "input_text": "text", "output_text": "text", "refusal": "refusal"}.get(str(kind))
        if key is not None and isinstance(part.get(key), str):
            return str(part[key])
        raise UnreadableError(f"content part of type {kind!r} is no text and cannot be judged", param)
    raise UnreadableError("content part is not an object", param)


def read_messages(messages: Sequence[object]) -> tuple[Message, ...]:
    """OpenAI messages (mappings with `role` and `content`) as values; raises `UnreadableError` with the place."""
    return tuple(_read_message(message, f"messages[{index}]") for index, message in enumerate(messages))


def _read_message(message: object, param: str) -> Message:
    if not isinstance(message, Mapping):
        raise UnreadableError("message is not an object with role and content", param)
    role = message.get("role")
    if role not in ROLES:
        raise UnreadableError(f"unknown role {role!r}; known are {', '.join(sorted(ROLES))}", f"{param}.role")
    return Message(str(role), content_text(message.get("content"), f"{param}.content"))


def turn_of(messages: Sequence[Message], context_turns: int) -> Turn:
    """The turn to judge, with at most `context_turns` earlier user turns.

    Without any user message the whole text is judged as if the user had said it: a request that hides in a system message is
    still a request. A closing assistant message (a prefill, which the model would continue) is judged with the user's text.
    """
    runs = _user_runs(messages)
    if not runs:
        return Turn("\n".join(message.text for message in messages if message.text))
    prefill = messages[-1].text if messages[-1].role == "assistant" else ""
    text = "\n".join(part for part in (runs[-1], prefill) if part)
    return Turn(text, tuple(runs[-1 - context_turns : -1]) if context_turns else ())


def _user_runs(messages: Sequence[Message]) -> list[str]:
    """User messages joined between assistant replies; a tool's result or a system message does not end a run."""
    spoken = [message for message in messages if message.role in ("user", "assistant")]
    grouped = groupby(spoken, key=lambda message: message.role)
    return ["\n".join(message.text for message in run) for role, run in grouped if role == "user"]
