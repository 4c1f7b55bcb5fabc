"""POST /v1/chat/completions: https://platform.openai.com/docs/api-reference/chat."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from uuid import uuid4

from guardrail.chat import INSTRUCTIONS, ROLES
from guardrail.guard import Said
from guardrail.proxy import sse
from guardrail.proxy.apis import Edits, Reply
from guardrail.proxy.apis.fields import (
    NO_USAGE,
    REFUSED_FIELDS,
    check_common,
    check_known,
    check_role,
    check_whole,
    invalid,
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
FOREIGN = words("prompt input instructions suffix previous_response_id conversation")

_NAME = re.compile(r"[^\s<|\\/>]{1,64}")  # OpenAI's own rule for `name`


class ChatCompletions:
    """An `Api`: the user's text is in `messages`."""

    def said(self, body: Json) -> Sequence[Said]:
        """The conversation."""
        reject_lookalikes(body, FIELDS | REFUSED_FIELDS)
        check_common(body, FOREIGN)
        check_whole(body, "n")
        messages = body.get("messages")
        if not isinstance(messages, list) or not messages:
            raise invalid("messages", "messages must be a list with at least one message")
        for index, message in enumerate(messages):
            _check_message(message, f"messages[{index}]")
        return [messages]

    def refusal(self, body: Json, text: str) -> Reply:
        """A chat completion; with structured output the text goes into `refusal`, which clients do not try to parse."""
        field = "refusal" if wants_structure(body.get("response_format")) else "content"
        if body.get("stream"):
            return Reply(b"".join(_events(body, field, text)), stream=True)
        return Reply(json.dumps(_completion(body, field, text)).encode())

    def forwarded(self, raw: bytes, body: Json, edits: Edits) -> bytes:
        """With a new system prompt, all system and developer messages are dropped and one is put first."""
        if edits == Edits():
            return raw
        text = raw.decode()
        changes = []
        if edits.model is not None:
            changes.append(set_member(text, "model", json.dumps(edits.model)))
        if edits.system is not None or edits.dropped:
            changes.append(_new_messages(text, body["messages"], edits))
        return apply(text, changes).encode()


def _check_message(message: object, param: str) -> None:
    if not isinstance(message, Mapping):
        raise invalid(param, "a message must be an object")
    reject_lookalikes(message, MESSAGE_FIELDS, param)
    check_role(message, ROLES, param)
    name = message.get("name")
    if name is not None and not (isinstance(name, str) and _NAME.fullmatch(name)):
        raise invalid(f"{param}.name", "name must be a word of at most 64 characters, without spaces or any of < | \\ / >")
    is_user = message.get("role") == "user"
    if is_user:
        check_known(message, USER_FIELDS, param)
    content = message.get("content")
    for index, part in enumerate(content if isinstance(content, list) else ()):
        if isinstance(part, Mapping):
            reject_lookalikes(part, PART_FIELDS, f"{param}.content[{index}]")
            if is_user:
                check_known(part, USER_PART_FIELDS, f"{param}.content[{index}]")


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


def _new_messages(text: str, messages: Sequence[Json], edits: Edits) -> Edit:
    array = dict(members(text))["messages"]
    head = [] if edits.system is None else [json.dumps({"role": "system", "content": edits.system})]
    kept = [
        span
        for index, (span, message) in enumerate(zip(elements(text, array), messages, strict=True))
        if index not in edits.dropped and (edits.system is None or message["role"] not in INSTRUCTIONS)
    ]
    return Edit(array, array_of(text, [*head, *kept]))
