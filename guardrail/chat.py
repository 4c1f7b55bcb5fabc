"""The text of a conversation: OpenAI messages in, one `Turn` out.

A turn is what the user says *now*: the user messages after the last assistant reply, joined, because two messages in a row are
answered as one. Its context is the user turns before it, oldest first.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from guardrail.errors import UnreadableError

INSTRUCTIONS = frozenset({"system", "developer"})
ROLES = INSTRUCTIONS | {"user", "assistant", "tool", "function"}


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
    if not isinstance(role, str) or role not in ROLES:
        raise UnreadableError(f"unknown role {role!r}; known are {', '.join(sorted(ROLES))}", f"{param}.role")
    return Message(role, content_text(message.get("content"), f"{param}.content"))


@dataclass(frozen=True, slots=True)
class Round:
    """What the user said in one go, and the places in the conversation of that and of what answered it."""

    text: str
    places: tuple[int, ...]


def rounds_of(messages: Sequence[Message]) -> list[Round]:
    """The user's turns, oldest first; only an assistant's reply ends one, a tool's result or a system message does not.

    System and developer messages belong to no round: they stay when a round is taken out.
    """
    found: list[tuple[list[str], list[int]]] = []
    answered = True
    for place, message in enumerate(messages):
        if message.role == "user":
            if answered:
                found.append(([], []))
            found[-1][0].append(message.text)
            answered = False
        elif message.role == "assistant":
            answered = True
        if found and message.role not in INSTRUCTIONS:
            found[-1][1].append(place)
    return [Round("\n".join(texts), tuple(places)) for texts, places in found]


def text_now(messages: Sequence[Message], rounds: Sequence[Round]) -> str:
    """The text to judge, without its context.

    Without any user message the whole text is judged as if the user had said it: a request that hides in a system message is
    still a request. A closing assistant message (a prefill, which the model would continue) is judged with the user's text.
    """
    if not rounds:
        return "\n".join(message.text for message in messages if message.text)
    prefill = messages[-1].text if messages[-1].role == "assistant" else ""
    return "\n".join(part for part in (rounds[-1].text, prefill) if part)


def turn_of(messages: Sequence[Message], context_turns: int) -> Turn:
    """The turn to judge, with at most `context_turns` earlier user turns, whatever became of those."""
    rounds = rounds_of(messages)
    earlier = [found.text for found in rounds[:-1]]
    return Turn(text_now(messages, rounds), tuple(earlier[-context_turns:]) if context_turns else ())
