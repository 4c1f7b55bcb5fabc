"""POST /v1/chat/completions: https://platform.openai.com/docs/api-reference/chat."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any
from uuid import uuid4

from guardrail.chat import Turn
from guardrail.guard import Guard
from guardrail.proxy import sse
from guardrail.proxy.apis import Reply
from guardrail.proxy.apis.fields import (
    REFUSED_FIELDS,
    check_choices,
    check_flag,
    check_model,
    invalid,
    reject_prompt_fields,
    wants_structure,
    wants_usage,
    words,
)
from guardrail.proxy.splice import Edit, apply, array_of, elements, members, set_member
from guardrail.proxy.strict_json import Json, reject_lookalikes

FIELDS = words(
    "messages model stream stream_options n response_format tools tool_choice functions function_call prediction metadata "
    "user stop store temperature top_p max_tokens max_completion_tokens logprobs top_logprobs logit_bias seed modalities audio "
    "parallel_tool_calls reasoning_effort service_tier web_search_options"
)
MESSAGE_FIELDS = words("role content name tool_calls tool_call_id function_call refusal audio")
PART_FIELDS = words("type text refusal image_url input_audio file")
USER_FIELDS = words("role content name id type cache_control")
"""What a user message may hold: text in any other field would reach the model without being judged."""
USER_PART_FIELDS = words("type text refusal image_url input_audio file id cache_control annotations")
INSTRUCTIONS = ("system", "developer")
NO_USAGE = {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}

_NAME = re.compile(r"[^\s<|\\/>]{1,64}")  # OpenAI's own rule for `name`


class ChatCompletions:
    """An `Api`: the user's text is in `messages`."""

    def turns(self, body: Json, guard: Guard) -> Sequence[Turn]:
        """One turn: the user messages after the last reply."""
        reject_lookalikes(body, FIELDS | REFUSED_FIELDS)
        reject_prompt_fields(body, ("prompt", "input", "instructions", "suffix", "previous_response_id", "conversation"))
        check_model(body)
        check_flag(body, "stream")
        check_choices(body)
        messages = body.get("messages")
        if not isinstance(messages, list) or not messages:
            raise invalid("messages", "messages must be a list with at least one message")
        for index, message in enumerate(messages):
            _check_message(message, f"messages[{index}]")
        return [guard.turn(messages)]

    def refusal(self, body: Json, text: str) -> Reply:
        """A chat completion; with structured output the text goes into `refusal`, which clients do not try to parse."""
        field = "refusal" if wants_structure(body.get("response_format")) else "content"
        if body.get("stream"):
            return Reply(b"".join(_events(body, field, text)), stream=True)
        return Reply(json.dumps(_completion(body, field, text)).encode())

    def rerouted(self, raw: bytes, *, model: str | None, system: str | None) -> bytes:
        """`model` replaced; with `system` all system and developer messages dropped and one put first."""
        text = raw.decode()
        edits = []
        if model is not None:
            edits.append(set_member(text, "model", json.dumps(model)))
        if system is not None:
            edits.append(_new_system(text, system))
        return apply(text, edits).encode()


def _check_message(message: object, param: str) -> None:
    if not isinstance(message, Mapping):
        return  # `guard.turn` says what is wrong
    reject_lookalikes(message, MESSAGE_FIELDS, param)
    name = message.get("name")
    if name is not None and not (isinstance(name, str) and _NAME.fullmatch(name)):
        raise invalid(f"{param}.name", "name must be a word of at most 64 characters, without spaces or any of < | \\ / >")
    is_user = message.get("role") == "user"
    if is_user:
        _check_fields(message, USER_FIELDS, param)
    content = message.get("content")
    for index, part in enumerate(content if isinstance(content, list) else ()):
        if isinstance(part, Mapping):
            reject_lookalikes(part, PART_FIELDS, f"{param}.content[{index}]")
            if is_user:
                _check_fields(part, USER_PART_FIELDS, f"{param}.content[{index}]")


def _check_fields(value: Mapping[str, Any], known: frozenset[str], param: str) -> None:
    unknown = next((key for key in value if key not in known and value[key] is not None), None)
    if unknown is not None:
        reason = "what a user says goes into content, text in other fields is not judged"
        raise invalid(f"{param}.{unknown[:40]}", reason, "unsupported_content")


def _completion(body: Json, field: str, text: str) -> Json:
    message = {"role": "assistant", "content": None, "refusal": None, field: text}
    choices = [{"index": i, "message": message, "logprobs": None, "finish_reason": "stop"} for i in _choices(body)]
    return {**_head(body, "chat.completion"), "choices": choices, "usage": NO_USAGE}


def _events(body: Json, field: str, text: str) -> Iterator[bytes]:
    """Per choice: the role, the text in one piece, the end; then the usage, if it was asked for."""
    head = _head(body, "chat.completion.chunk")
    usage: Json = {"usage": None} if wants_usage(body) else {}
    start = {"role": "assistant", "content": None, "refusal": None, field: ""}
    for delta, finish in ((start, None), ({field: text}, None), ({}, "stop")):
        for i in _choices(body):
            choice = {"index": i, "delta": delta, "logprobs": None, "finish_reason": finish}
            yield sse.event({**head, "choices": [choice], **usage})
    if usage:
        yield sse.event({**head, "choices": [], "usage": NO_USAGE})
    yield sse.DONE


def _choices(body: Json) -> range:
    return range(body.get("n") or 1)


def _head(body: Json, kind: str) -> Json:
    return {"id": f"chatcmpl-{uuid4().hex}", "object": kind, "created": int(time.time()), "model": body.get("model") or ""}


def _new_system(text: str, system: str) -> Edit:
    array = dict(members(text))["messages"]
    kept = [span for span in elements(text, array) if json.loads(text[span.start : span.end])["role"] not in INSTRUCTIONS]
    return Edit(array, array_of(text, [json.dumps({"role": "system", "content": system}), *kept]))
