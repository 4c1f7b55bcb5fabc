"""POST /v1/responses: https://platform.openai.com/docs/api-reference/responses.

Only what lies in the request is judged, so whatever points at text elsewhere is refused: stored conversations, prompts and items,
and responses that are fetched later. The id of a refusal, which no upstream knows, is taken out of the next request.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any
from uuid import uuid4

from guardrail.chat import INSTRUCTIONS, content_text
from guardrail.guard import Said
from guardrail.proxy import sse
from guardrail.proxy.apis import Edits, Reply
from guardrail.proxy.apis.fields import (
    REFUSED_FIELDS,
    check_common,
    check_known,
    check_role,
    check_switch,
    invalid,
    wants_structure,
    words,
)
from guardrail.proxy.splice import Edit, apply, array_of, elements, members, remove_member, set_member
from guardrail.proxy.strict_json import Json, reject_lookalikes

REFUSED_ID = "resp_guardrail_"
FIELDS = words(
    "input instructions model stream stream_options text tools tool_choice include store metadata previous_response_id "
    "conversation prompt background truncation reasoning max_output_tokens max_tool_calls temperature top_p top_logprobs user "
    "parallel_tool_calls service_tier safety_identifier prompt_cache_key"
)
FOREIGN = words("messages suffix")
ELSEWHERE = words("conversation prompt context_management")
"""Fields that hold or rebuild text at the provider."""
ITEM_FIELDS = words("type role content id status output call_id name arguments input summary encrypted_content")
PART_FIELDS = words("type text refusal annotations logprobs image_url file_id file_url file_data input_audio")
USER_FIELDS = words("type role content id status")
"""What a user's message may hold: text in any other field would reach the model without being judged."""
USER_PART_FIELDS = PART_FIELDS | words("id")
ROLES = words("user assistant system developer")
MODEL_ITEMS = words("function_call custom_tool_call reasoning")
TOOL_ITEMS = words("function_call_output custom_tool_call_output")
PLAIN: Json = {"annotations": [], "logprobs": []}
NO_USAGE = {
    "input_tokens": 0,
    "input_tokens_details": {"cached_tokens": 0},
    "output_tokens": 0,
    "output_tokens_details": {"reasoning_tokens": 0},
    "total_tokens": 0,
}


class Responses:
    """An `Api`: the user's text is in `input`, a text or a list of items."""

    def said(self, body: Json) -> Sequence[Said]:
        """The conversation as messages: the instructions first, then one for each item."""
        reject_lookalikes(body, FIELDS | REFUSED_FIELDS)
        check_common(body, FOREIGN)
        check_switch(body, "background")
        _check_state(body)
        return [[*_instructions(body), *_messages(body.get("input"))]]

    def refusal(self, body: Json, text: str) -> Reply:
        """A response with one message; with structured output its part is a refusal, which clients do not try to parse."""
        options = body.get("text")
        structured = wants_structure(options.get("format") if isinstance(options, Mapping) else None)
        part = {"type": "refusal", "refusal": text} if structured else {"type": "output_text", "text": text, **PLAIN}
        item = {"type": "message", "id": f"msg_{uuid4().hex}", "status": "completed", "role": "assistant", "content": [part]}
        response = _response(body, item)
        if body.get("stream"):
            numbered = ({**step, "sequence_number": number} for number, step in enumerate(_steps(response, item, part, text)))
            return Reply(b"".join(sse.event(step, step["type"]) for step in numbered), stream=True)
        return Reply(json.dumps(response).encode())

    def forwarded(self, raw: bytes, body: Json, edits: Edits) -> bytes:
        """With a new system prompt, `instructions` is replaced and all system and developer messages are dropped."""
        refused_before = body.get("previous_response_id") is not None
        if edits == Edits() and not refused_before:
            return raw
        text = raw.decode()
        changes = []
        if edits.model is not None:
            changes.append(set_member(text, "model", json.dumps(edits.model)))
        if edits.system is not None or edits.dropped:
            changes += _new_input(text, body, edits)
        if edits.system is not None:
            changes.append(set_member(text, "instructions", json.dumps(edits.system)))
        text = apply(text, changes)
        return (remove_member(text, "previous_response_id") if refused_before else text).encode()


def _check_state(body: Json) -> None:
    elsewhere = next((key for key in ELSEWHERE if body.get(key) is not None), None)
    if elsewhere is not None:
        reason = f"{elsewhere} points at text outside the request, which cannot be judged"
        raise invalid(elsewhere, reason, "stateful_not_supported")
    if body.get("background"):
        raise invalid("background", "answers cannot be fetched later through this proxy", "stateful_not_supported")
    previous = body.get("previous_response_id")
    if previous is not None and not (isinstance(previous, str) and previous.startswith(REFUSED_ID)):
        reason = "the conversation behind it cannot be judged, send it in input"
        raise invalid("previous_response_id", reason, "unknown_previous_response")


def _instructions(body: Json) -> list[Json]:
    """As a message, where there are any: without a user's message, they are what is judged."""
    return [{"role": "system", "content": body["instructions"]}] if body.get("instructions") else []


def _messages(given: object) -> list[Json]:
    if isinstance(given, str):
        return [{"role": "user", "content": given}]
    if not isinstance(given, list) or not given:
        raise invalid("input", "input must be a text or a list of items")
    return [_message(item, f"input[{index}]") for index, item in enumerate(given)]


def _message(item: object, param: str) -> Json:
    if not isinstance(item, Mapping):
        raise invalid(param, "an input item must be an object")
    reject_lookalikes(item, ITEM_FIELDS, param)
    kind = str(item.get("type", "message"))
    if kind == "message":
        _check_message(item, param)
        return {"role": item["role"], "content": content_text(item.get("content"), f"{param}.content")}
    if kind in MODEL_ITEMS:
        return {"role": "assistant", "content": ""}
    if kind in TOOL_ITEMS:
        return {"role": "tool", "content": content_text(item.get("output"), f"{param}.output")}
    raise invalid(param, f"items of type {kind[:40]!r} cannot be judged", "unsupported_content")


def _check_message(item: Mapping[str, Any], param: str) -> None:
    check_role(item, ROLES, param)
    is_user = item["role"] == "user"
    if is_user:
        check_known(item, USER_FIELDS, param)
    content = item.get("content")
    for index, part in enumerate(content if isinstance(content, list) else ()):
        if isinstance(part, Mapping):
            reject_lookalikes(part, PART_FIELDS, f"{param}.content[{index}]")
            if is_user:
                check_known(part, USER_PART_FIELDS, f"{param}.content[{index}]")


def _new_input(text: str, body: Json, edits: Edits) -> list[Edit]:
    given = body["input"]
    if not isinstance(given, list):
        return []
    before = len(_instructions(body))
    array = dict(members(text))["input"]
    kept = [
        span
        for index, (span, item) in enumerate(zip(elements(text, array), given, strict=True))
        if index + before not in edits.dropped and (edits.system is None or str(item.get("role")) not in INSTRUCTIONS)
    ]
    return [Edit(array, array_of(text, kept))]


def _response(body: Json, item: Json) -> Json:
    options = {"parallel_tool_calls": True, "tool_choice": "auto", "tools": [], "temperature": 1.0, "top_p": 1.0, "metadata": {}}
    nothing = ("error", "incomplete_details", "instructions", "max_output_tokens", "previous_response_id", "user")
    return {
        "id": f"{REFUSED_ID}{uuid4().hex}",
        "object": "response",
        "created_at": int(time.time()),
        "status": "completed",
        "model": body.get("model") or "",
        "output": [item],
        "usage": NO_USAGE,
        "background": False,
        "store": False,
        "reasoning": {"effort": None, "summary": None},
        "text": {"format": {"type": "text"}},
        "truncation": "disabled",
        **options,
        **dict.fromkeys(nothing),
    }


def _steps(response: Json, item: Json, part: Json, text: str) -> Iterator[Json]:
    """The events of a stream, in the order that clients require: `created` first, `completed` last."""
    begun = {**response, "status": "in_progress", "output": [], "usage": None}
    family, key = ("refusal", "refusal") if part["type"] == "refusal" else ("output_text", "text")
    extra: Json = {"logprobs": []} if key == "text" else {}
    place = {"item_id": item["id"], "output_index": 0, "content_index": 0}
    yield {"type": "response.created", "response": begun}
    yield {"type": "response.in_progress", "response": begun}
    yield {"type": "response.output_item.added", "output_index": 0, "item": {**item, "status": "in_progress", "content": []}}
    yield {"type": "response.content_part.added", **place, "part": {**part, key: ""}}
    yield {"type": f"response.{family}.delta", **place, "delta": text, **extra}
    yield {"type": f"response.{family}.done", **place, key: text, **extra}
    yield {"type": "response.content_part.done", **place, "part": part}
    yield {"type": "response.output_item.done", "output_index": 0, "item": item}
    yield {"type": "response.completed", "response": response}
