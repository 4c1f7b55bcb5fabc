"""Text generation: messages in, tokens out, one by one."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from guardrail.assistant.graph import POSITIONS, past_names
from guardrail.chat import Message
from guardrail.errors import BaseModelError

if TYPE_CHECKING:
    from guardrail.assistant.gguf import Array

MAX_TOKENS = 48
SHORTEST = 8
"""Tokens from which on a reply ends with its sentence: a small model that goes on loses itself."""
SENTENCE_END = re.compile(r"[a-z]{2}[.!?][\"')]?$")

PREAMBLE = (
    Message("system", "You are a Star Trek expert. Answer in one short sentence."),
    Message("user", "Who is Spock?"),
    Message("assistant", "Spock is the half-Vulcan science officer of the USS Enterprise, and the son of Sarek."),
    Message("user", "Hello!"),
    Message("assistant", "Hello! Ask me anything about Star Trek."),
    Message("user", "Who commands the Enterprise-D?"),
    Message("assistant", "Captain Jean-Luc Picard commands the Enterprise-D."),
    Message("user", "Who is his first officer?"),
    Message("assistant", "His first officer is Commander William Riker."),
    Message("user", "What is the Prime Directive?"),
    Message("assistant", "The Prime Directive forbids Starfleet to interfere with other civilizations."),
    Message("user", "What is a tribble?"),
    Message("assistant", "A tribble is a small, furry animal that eats a lot and breeds very fast."),
)
"""Stands before conversations without a system message. Examples teach a small model more than instructions do."""


class Token(NamedTuple):
    """A piece of the reply; `finish` is set on the last one. `text` is empty while a character is not complete."""

    text: str
    finish: Literal["stop", "length"] | None = None


class LanguageModel:
    """The compiled model in `folder` (see `weights.compiled`), on one thread. Not for several threads at once.

    Keys and values of the last conversation are kept, so that the next one is read only from where it differs.
    """

    def __init__(self, folder: Path) -> None:
        import onnxruntime
        from tokenizers import Tokenizer

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1  # two were slower on two cores that others use too: 26 tokens/s against 49
        options.log_severity_level = 3
        try:
            self._session = onnxruntime.InferenceSession(folder / "model.onnx", options, providers=["CPUExecutionProvider"])
        except Exception as exc:  # ONNX Runtime's errors have no common base
            raise BaseModelError(f"{folder} is damaged ({type(exc).__name__}). Fix: delete it; it is made again") from exc
        self._tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self._start, self._end = self._encode("<|im_start|><|im_end|>")
        self._tokenizer.encode_special_tokens = True  # in a message they are text and end nobody's turn
        self._names = past_names((len(self._session.get_outputs()) - 1) // 2)
        self._known: list[int] = []
        self._past = self._nothing()

    def prompt(self, messages: Sequence[Message]) -> list[int]:
        """A conversation as tokens, in the ChatML form that the model was trained on, open for the assistant's turn.

        Raises `ValueError` when it is longer than the model takes.
        """
        said = messages if any(message.role == "system" for message in messages) else (*PREAMBLE, *messages)
        ids = [token for message in said for token in self._turn(message)]
        ids += [self._start, *self._encode("assistant\n")]
        if len(ids) + MAX_TOKENS > POSITIONS:
            raise ValueError(f"the conversation has {len(ids)} tokens; this model takes {POSITIONS - MAX_TOKENS}")
        return ids

    def reply(self, prompt: Sequence[int], max_tokens: int = MAX_TOKENS) -> Iterator[Token]:
        """The likeliest tokens, until the model ends its turn or its first sentence."""
        from tokenizers.decoders import DecodeStream

        ids, text, stream = list(prompt), "", DecodeStream(skip_special_tokens=True)
        for count in range(1, max_tokens + 1):
            token = self._next(ids)
            if token == self._end:
                yield Token("", "stop")
                return
            ids.append(token)
            piece = stream.step(self._tokenizer, token) or ""
            text += piece
            if count >= SHORTEST and SENTENCE_END.search(text):
                yield Token(piece, "stop")
                return
            yield Token(piece, "length" if count == max_tokens else None)

    def _turn(self, message: Message) -> list[int]:
        role = message.role if message.role in ("system", "assistant") else "user"
        return [self._start, *self._encode(f"{role}\n{message.text}"), self._end, *self._encode("\n")]

    def _encode(self, text: str) -> list[int]:
        ids: list[int] = self._tokenizer.encode(text).ids
        return ids

    def _next(self, ids: list[int]) -> int:
        """The likeliest token after `ids`; only what differs from the last call is computed."""
        same = next((at for at, pair in enumerate(zip(ids, self._known, strict=False)) if pair[0] != pair[1]), len(self._known))
        same = min(same, len(ids) - 1)
        past = self._past if same == len(self._known) else [_cut(value, same) for value in self._past]
        logits, *self._past = self._run(ids[same:], past, len(ids))
        self._known = list(ids)
        return int(logits.numpy()[0, -1].argmax())

    def _run(self, new: list[int], past: list[Any], total: int) -> list[Any]:
        import numpy as np

        counts = {"last": np.array([total - 1], np.int32), "total": np.array(total, np.int32)}
        feed = {name: _value(array) for name, array in {"ids": np.array([new]), **counts}.items()}
        feed |= {f"past.{name}": value for name, value in zip(self._names, past, strict=True)}
        values: list[Any] = self._session.run_with_ort_values(["logits", *(f"present.{name}" for name in self._names)], feed)
        return values

    def _nothing(self) -> list[Any]:
        import numpy as np

        _, heads, _, width = self._session.get_inputs()[-1].shape
        return [_value(np.zeros((1, heads, 0, width), np.float32)) for _ in self._names]


def _value(array: Any) -> Any:
    from onnxruntime import OrtValue

    return OrtValue.ortvalue_from_numpy(array)


def _cut(value: Any, positions: int) -> Any:
    """Keys or values (1, kv_heads, positions, head_width) of the first positions only."""
    kept: Array = value.numpy()[:, :, :positions]
    return _value(kept.copy())
