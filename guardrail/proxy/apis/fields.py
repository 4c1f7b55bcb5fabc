"""What the guarded APIs have in common: fields that every request may hold, and fields that none may."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from guardrail.proxy.envelope import ApiError
from guardrail.proxy.strict_json import Json

MAX_CHOICES = 128
MAX_MODEL = 256
"""In characters; the model's name is echoed in every event of a refusal."""


def words(text: str) -> frozenset[str]:
    """The names in a line of text."""
    return frozenset(text.split())


REWRITES_PROMPT = words(
    "chat_template prompt_embeds documents data_sources truncate_prompt_tokens truncation_side mm_processor_kwargs "
    "multi_modal_data input_ids input_embeds image_data tool_prompt custom_logit_processor session_params "
    "kv_transfer_params"
)
"""Extensions of vLLM, SGLang, TGI and Azure that put text, tokens or state into the prompt, or cut the judged part away."""
CHOOSES_UPSTREAM = words(
    "api_base base_url api_key api_version api_type custom_llm_provider guardrails extra_body extra_headers models route plugins "
    "transforms preset fallbacks context_window_fallbacks mock_response"
)
"""Extensions of LiteLLM and OpenRouter by which a client picks another server or model, or switches guards off."""
TOOL_ADDRESSES = words("server_url connector_id api_base base_url authorization headers")
NO_USAGE = {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}
REFUSED_FIELDS = REWRITES_PROMPT | CHOOSES_UPSTREAM


def invalid(param: str | None, reason: str, code: str = "invalid_value") -> ApiError:
    """400 with the place in OpenAI's notation."""
    return ApiError(400, code, f"Invalid request: {reason}.", param=param)


def reject_prompt_fields(body: Json, foreign: Collection[str] = ()) -> None:
    """Refuse fields that change the prompt or the upstream behind the guard's back.

    `foreign` names fields of other APIs: a lenient gateway might read them as well.
    """
    refused = REFUSED_FIELDS | frozenset(foreign)
    for key, value in body.items():
        if value is not None and (key in refused or key.startswith("litellm_")):
            reason = f"{key[:40]} is not accepted, it could change the prompt or the server after the check"
            raise invalid(key[:40], reason, "unsupported_field")
    options = body.get("chat_template_kwargs")
    if isinstance(options, Mapping) and not any(isinstance(value, (str, list, dict)) for value in options.values()):
        return
    if options is not None:
        raise invalid("chat_template_kwargs", "only switches and numbers are accepted in it", "unsupported_field")


def check_common(body: Json, foreign: Collection[str]) -> None:
    """What holds for every API: no foreign fields, `model` is a name, `stream` is a switch."""
    reject_prompt_fields(body, foreign)
    check_model(body)
    check_switch(body, "stream")
    _check_tools(body.get("tools"))


def check_model(body: Json) -> None:
    """`model` is a name, or missing."""
    model = body.get("model")
    if model is not None and not (isinstance(model, str) and len(model) <= MAX_MODEL):
        raise invalid("model", f"model must be a string of at most {MAX_MODEL} characters")


def check_switch(body: Json, key: str) -> None:
    """A switch is true, false or missing: backends disagree on what `"true"` and 1 mean."""
    if not (body.get(key) is None or isinstance(body[key], bool)):
        raise invalid(key, f"{key} must be true or false")


def check_whole(body: Json, key: str) -> None:
    """A number of choices is in OpenAI's bounds."""
    number = body.get(key)
    if number is not None and not (type(number) is int and 1 <= number <= MAX_CHOICES):
        raise invalid(key, f"{key} must be a whole number from 1 to {MAX_CHOICES}")


def _check_tools(tools: object) -> None:
    """A tool is a description: one that names a server would let a client choose who is called."""
    for index, tool in enumerate(tools if isinstance(tools, list) else ()):
        address = next((key for key in tool if key in TOOL_ADDRESSES), None) if isinstance(tool, Mapping) else None
        if address is not None:
            raise invalid(f"tools[{index}].{address}", f"{address} is not accepted in a tool", "unsupported_field")


def check_known(value: Mapping[str, Any], known: frozenset[str], param: str) -> None:
    """A user's message holds known fields only: text in others would reach the model without being judged."""
    unknown = next((key for key in value if key not in known and value[key] is not None), None)
    if unknown is not None:
        reason = "what a user says goes into content, text in other fields is not judged"
        raise invalid(f"{param}.{unknown[:40]}", reason, "unsupported_content")


def check_role(message: Mapping[str, Any], roles: Collection[str], param: str) -> None:
    """The role is a known one: what another one would mean to a backend, nobody knows."""
    role = message.get("role")
    if not (isinstance(role, str) and role in roles):
        raise invalid(f"{param}.role", f"role must be one of {', '.join(sorted(roles))}", "unsupported_content")


def wants_structure(response_format: object) -> bool:
    """Whether the reply is going to be parsed as JSON."""
    return isinstance(response_format, Mapping) and response_format.get("type") in ("json_object", "json_schema")


def wants_usage(body: Json) -> bool:
    """Whether a stream is to end with its token counts."""
    options = body.get("stream_options")
    return isinstance(options, Mapping) and options.get("include_usage") is True
