"""`guard_openai`: an OpenAI client that asks its server only what the guard lets pass.

What comes back has the client's class, its options and its connections. All calls of an OpenAI client go through its method
`request`, whatever their form (`create`, `parse`, `stream`, `with_raw_response`, `with_options`), so that one is guarded. For a
refused call nothing is sent: its answer is made here, in the wire format of the API, and read by the client's own code into the
type that the caller waits for. Refused earlier turns are left out of what is sent (see `Guard.judge`).

Chat completions, completions and responses are guarded. Calls by which a user's text would reach a model on another way are
refused with `UnguardedError`: assistants, threads, stored conversations, batches, realtime. Everything else passes.
Wire formats: https://platform.openai.com/docs/api-reference.
"""

from __future__ import annotations

import importlib
import json
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from types import MappingProxyType
from typing import Any, Literal, TypeVar
from urllib.parse import urlsplit
from uuid import uuid4

from guardrail.errors import GuardrailError, UnreadableError
from guardrail.guard import Guard, Judgement, Refused, Said
from guardrail.policy import Action, Request

ClientT = TypeVar("ClientT")
Body = dict[str, Any]
REFUSED_ID = "resp_guardrail_"
UNGUARDED = ("/assistants", "/threads", "/conversations", "/batches", "/realtime", "/responses/compact", "/chatkit")
NO_TOKENS = {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}


class UnguardedError(GuardrailError):
    """The call would bring a user's text to a model on a way that is not guarded."""


@dataclass(frozen=True, slots=True)
class _Settings:
    guard: Guard
    on_refuse: Literal["reply", "raise"]
    routes: Mapping[str, Any]


def guard_openai(
    client: ClientT,
    guard: Guard,
    *,
    on_refuse: Literal["reply", "raise"] = "reply",
    routes: Mapping[str, Any] = MappingProxyType({}),
) -> ClientT:
    """The same client, guarded; the given one stays as it is and shares its connections.

    Args:
        client: an `OpenAI`, `AsyncOpenAI` or a client derived from one (openai 2 and 3).
        guard: judges the calls.
        on_refuse: `reply` answers with the refusal as the server would, `raise` raises `Refused`.
        routes: clients for calls that the policy routes, by upstream name; those without one go on to `client`.

    Raises:
        TypeError: that is no OpenAI client.
    """
    if on_refuse not in ("reply", "raise"):
        raise ValueError(f"on_refuse must be 'reply' or 'raise', not {on_refuse!r}")
    source: Any = client
    if not all(callable(getattr(source, name, None)) for name in ("copy", "request", "post")):
        raise TypeError(f"guard_openai needs an OpenAI client, not {type(client).__name__}")
    kind = type(source)
    request = _async_request if _is_async(kind) else _sync_request
    settings = _Settings(guard, on_refuse, dict(routes))
    guarded = source.copy()
    guarded.__class__ = type(f"Guarded{kind.__name__}", (kind,), {"request": request(kind, settings), "realtime": _NO_REALTIME})
    return guarded  # type: ignore[no-any-return]


def _is_async(kind: type) -> bool:
    return any(base.__name__ == "AsyncAPIClient" for base in kind.__mro__)


def _no_realtime(client: Any) -> Any:
    raise UnguardedError("realtime connections are not guarded. Fix: use an unguarded client for them, on purpose")


_NO_REALTIME = property(_no_realtime)


def _sync_request(kind: Any, settings: _Settings) -> Callable[..., Any]:
    def request(self: Any, cast_to: Any, options: Any, *, stream: bool = False, stream_cls: Any = None) -> Any:
        call = _call_of(options)
        if call is None:
            return kind.request(self, cast_to, options, stream=stream, stream_cls=stream_cls)
        judged = [settings.guard.judge(said, request=call.facts) for said in call.said]
        refusal = _refused(settings, judged)
        if refusal is None:
            return _target(settings, judged, self, kind)(cast_to, call.sent(judged), stream=stream, stream_cls=stream_cls)
        response = _response(self, options, call, refusal)
        cast_to = self._maybe_override_cast_to(cast_to, options)
        return self._process_response(
            cast_to=cast_to, options=options, response=response, stream=stream, stream_cls=stream_cls, retries_taken=0
        )

    return request


def _async_request(kind: Any, settings: _Settings) -> Callable[..., Any]:
    async def request(self: Any, cast_to: Any, options: Any, *, stream: bool = False, stream_cls: Any = None) -> Any:
        call = _call_of(options)
        if call is None:
            return await kind.request(self, cast_to, options, stream=stream, stream_cls=stream_cls)
        judged = [await settings.guard.ajudge(said, request=call.facts) for said in call.said]
        refusal = _refused(settings, judged)
        if refusal is None:
            return await _target(settings, judged, self, kind)(cast_to, call.sent(judged), stream=stream, stream_cls=stream_cls)
        response = _response(self, options, call, refusal)
        cast_to = self._maybe_override_cast_to(cast_to, options)
        return await self._process_response(
            cast_to=cast_to, options=options, response=response, stream=stream, stream_cls=stream_cls, retries_taken=0
        )

    return request


def _refused(settings: _Settings, judged: Sequence[Judgement]) -> Judgement | None:
    """The first refusal; raises it if so asked."""
    refusal = next((judgement for judgement in judged if not judgement.decision.allowed), None)
    if refusal is not None and settings.on_refuse == "raise":
        raise Refused(refusal.decision)
    return refusal


def _target(settings: _Settings, judged: Sequence[Judgement], client: Any, kind: Any) -> Callable[..., Any]:
    """`request` of the client that the call goes to."""
    names = [judgement.decision.route or "" for judgement in judged if judgement.decision.action is Action.ROUTE]
    other = next((settings.routes[name] for name in names if name in settings.routes), None)
    if other is not None:
        request: Callable[..., Any] = other.request
        return request
    return lambda *args, **kwargs: kind.request(client, *args, **kwargs)


@dataclass(frozen=True, slots=True)
class _Call:
    """A guarded call: which API, its body, and what is to be judged in it."""

    api: _Api
    options: Any
    body: Body
    said: tuple[Said, ...]
    facts: Request

    def sent(self, judged: Sequence[Judgement]) -> Any:
        """The options to send: refused earlier turns are left out."""
        body = self.api.forwarded(self.body, judged[0].dropped)
        if body is self.body:
            return self.options
        return self.options.model_copy(update={"json_data": body, "extra_json": None})


def _call_of(options: Any) -> _Call | None:
    """The guarded call in a request, None for one that passes. Raises `UnguardedError` and `UnreadableError`."""
    path = urlsplit(str(options.url)).path.rstrip("/")
    if any(f"{part}/" in f"{path}/" for part in UNGUARDED) and str(options.method).lower() == "post":
        raise UnguardedError(f"{path} is not guarded. Fix: use an unguarded client for it, on purpose")
    api = next((api for end, api in APIS if path.endswith(end)), None)
    if api is None or str(options.method).lower() != "post":
        return None
    if not isinstance(options.json_data, Mapping) or not isinstance(options.extra_json or {}, Mapping):
        raise UnreadableError("the body is not a JSON object and cannot be judged", "body")
    body = {**options.json_data, **(options.extra_json or {})}
    facts = Request(model=str(body.get("model") or ""), endpoint=f"/v1{path[path.rindex(api.path) :]}")
    return _Call(api, options, body, api.said(body), facts)


def _response(client: Any, options: Any, call: _Call, refusal: Judgement) -> Any:
    """The HTTP response that a server would have sent, of the client's own HTTP library."""
    request = client._build_request(options, retries_taken=0)
    library = importlib.import_module(type(request).__module__.partition(".")[0])
    stream = bool(call.body.get("stream"))
    content = call.api.answer(call.body, refusal.decision.reply, stream)
    headers = {
        "content-type": "text/event-stream" if stream else "application/json",
        "x-guardrail-action": refusal.decision.action.value,
    }
    response = library.Response(200, headers=headers, content=content, request=request)
    response.elapsed = timedelta(milliseconds=refusal.decision.timings.get("guard_ms", 0.0))
    return response


class _Api(ABC):
    """Where an API keeps the user's text, and how it says no."""

    path: str

    @abstractmethod
    def said(self, body: Body) -> tuple[Said, ...]:
        """What must be judged, each on its own."""

    def forwarded(self, body: Body, dropped: tuple[int, ...]) -> Body:
        """The body without dropped messages; the same object if there is nothing to change."""
        return body

    @abstractmethod
    def answer(self, body: Body, text: str, stream: bool) -> bytes:
        """The refusal, as JSON or as an event stream."""


class _Chat(_Api):
    path = "/chat/completions"

    def said(self, body: Body) -> tuple[Said, ...]:
        messages = body.get("messages")
        if not isinstance(messages, Sequence) or isinstance(messages, str):
            raise UnreadableError("messages must be a list", "messages")
        return (list(messages),)

    def forwarded(self, body: Body, dropped: tuple[int, ...]) -> Body:
        return {**body, "messages": _without(body["messages"], dropped)} if dropped else body

    def answer(self, body: Body, text: str, stream: bool) -> bytes:
        structured = (body.get("response_format") or {}).get("type") in ("json_object", "json_schema")
        field = "refusal" if structured else "content"
        if stream:
            return _sse(self._chunks(body, field, text), done=True)
        message = {"role": "assistant", "content": None, "refusal": None, field: text}
        choices = [{"index": i, "message": message, "logprobs": None, "finish_reason": "stop"} for i in _choices(body)]
        return json.dumps({**_head(body, "chatcmpl", "chat.completion"), "choices": choices, "usage": NO_TOKENS}).encode()

    def _chunks(self, body: Body, field: str, text: str) -> Iterator[Body]:
        head = _head(body, "chatcmpl", "chat.completion.chunk")
        for delta, finish in (({"role": "assistant", field: text}, None), ({}, "stop")):
            for i in _choices(body):
                yield {**head, "choices": [{"index": i, "delta": delta, "logprobs": None, "finish_reason": finish}]}
        if (body.get("stream_options") or {}).get("include_usage"):
            yield {**head, "choices": [], "usage": NO_TOKENS}


class _Completions(_Api):
    path = "/completions"

    def said(self, body: Body) -> tuple[Said, ...]:
        prompts = body.get("prompt")
        texts = [prompts] if isinstance(prompts, str) else prompts
        if not isinstance(texts, Sequence) or not texts or not all(isinstance(text, str) for text in texts):
            raise UnreadableError("prompt must be a text or a list of texts; tokens cannot be judged", "prompt")
        suffix = body.get("suffix") or ""
        return tuple(f"{text}\n{suffix}" if suffix else text for text in texts)

    def answer(self, body: Body, text: str, stream: bool) -> bytes:
        prompts = 1 if isinstance(body["prompt"], str) else len(body["prompt"])
        places = range(prompts * len(_choices(body)))
        choices = [{"index": i, "text": text, "logprobs": None, "finish_reason": "stop"} for i in places]
        value = {**_head(body, "cmpl", "text_completion"), "choices": choices}
        return _sse([value], done=True) if stream else json.dumps({**value, "usage": NO_TOKENS}).encode()


class _Responses(_Api):
    path = "/responses"

    def said(self, body: Body) -> tuple[Said, ...]:
        given = body.get("input")
        items = [{"role": "user", "content": given}] if isinstance(given, str) else given
        if items is not None and not isinstance(items, Sequence):
            raise UnreadableError("input must be a text or a list of items", "input")
        variables = (body.get("prompt") or {}).get("variables") or {}
        extra = [{"role": "user", "content": _variable(value, name)} for name, value in variables.items()]
        return ([*(_message_of(item, f"input[{i}]") for i, item in enumerate(items or [])), *extra],)

    def forwarded(self, body: Body, dropped: tuple[int, ...]) -> Body:
        previous = str(body.get("previous_response_id") or "")
        if dropped and not isinstance(body["input"], str):
            body = {**body, "input": _without(body["input"], dropped)}
        if previous.startswith(REFUSED_ID):  # a refusal that no server knows: go on from what came before it
            before = previous.removeprefix(REFUSED_ID).partition("_")[2]
            body = {key: value for key, value in body.items() if key != "previous_response_id"}
            body |= {"previous_response_id": before} if before else {}
        return body

    def answer(self, body: Body, text: str, stream: bool) -> bytes:
        form = (((body.get("text") or {}).get("format")) or {}).get("type")
        kind = "refusal" if form in ("json_object", "json_schema") else "output_text"
        part = {"type": kind, "refusal": text} if kind == "refusal" else {"type": kind, "text": text, "annotations": []}
        item = {"type": "message", "id": f"msg_{uuid4().hex}", "role": "assistant", "status": "completed", "content": [part]}
        final = self._response(body, item)
        return _sse(self._events(final, item, part, text), named=True) if stream else json.dumps(final).encode()

    def _response(self, body: Body, item: Body) -> Body:
        before = str(body.get("previous_response_id") or "")
        if before.startswith(REFUSED_ID):
            before = before.removeprefix(REFUSED_ID).partition("_")[2]
        details = {"input_tokens_details": {"cached_tokens": 0}, "output_tokens_details": {"reasoning_tokens": 0}}
        return {
            "id": f"{REFUSED_ID}{uuid4().hex}_{before}",
            "object": "response",
            "created_at": int(time.time()),
            "model": body.get("model") or "",
            "status": "completed",
            "output": [item],
            "previous_response_id": before or None,
            "tools": body.get("tools") or [],
            "tool_choice": body.get("tool_choice") or "auto",
            "parallel_tool_calls": True,
            "usage": {"input_tokens": 0, "output_tokens": 0, "total_tokens": 0, **details},
            **dict.fromkeys(("error", "incomplete_details", "instructions", "metadata", "temperature", "top_p")),
        }

    def _events(self, final: Body, item: Body, part: Body, text: str) -> Iterator[Body]:
        begun = {**final, "status": "in_progress", "output": [], "usage": None}
        word = "refusal" if part["type"] == "refusal" else "text"
        family = "refusal" if word == "refusal" else "output_text"
        where = {"item_id": item["id"], "output_index": 0, "content_index": 0}
        more: Body = {"logprobs": []} if word == "text" else {}
        steps: list[Body] = [
            {"type": "response.created", "response": begun},
            {"type": "response.in_progress", "response": begun},
            {"type": "response.output_item.added", "output_index": 0, "item": {**item, "status": "in_progress", "content": []}},
            {"type": "response.content_part.added", **where, "part": {**part, word: ""}},
            {"type": f"response.{family}.delta", **where, "delta": text, **more},
            {"type": f"response.{family}.done", **where, word: text, **more},
            {"type": "response.content_part.done", **where, "part": part},
            {"type": "response.output_item.done", "output_index": 0, "item": item},
            {"type": "response.completed", "response": final},
        ]
        return ({**step, "sequence_number": number} for number, step in enumerate(steps))


APIS: tuple[tuple[str, _Api], ...] = (
    ("/chat/completions", _Chat()),
    ("/completions", _Completions()),
    ("/responses", _Responses()),
)
"""End of the path -> API; the first that fits."""


def _message_of(item: object, param: str) -> Mapping[str, object]:
    """An input item of the Responses API as a message; what is no message counts as the assistant's or a tool's."""
    if not isinstance(item, Mapping):
        raise UnreadableError("input item is not an object", param)
    kind = item.get("type") or "message"
    if kind == "message":
        return item
    if kind == "item_reference":
        raise UnreadableError("an item reference holds text that is not here and cannot be judged", param)
    return {"role": "tool" if str(kind).endswith("_output") else "assistant", "content": None}


def _variable(value: object, name: str) -> object:
    return value if isinstance(value, str) else [dict(value)] if isinstance(value, Mapping) else f"{name}: {value}"


def _without(items: Sequence[Any], dropped: tuple[int, ...]) -> list[Any]:
    gone = set(dropped)
    return [item for index, item in enumerate(items) if index not in gone]


def _choices(body: Body) -> range:
    return range(body.get("n") or 1)


def _head(body: Body, prefix: str, kind: str) -> Body:
    return {"id": f"{prefix}-{uuid4().hex}", "object": kind, "created": int(time.time()), "model": body.get("model") or ""}


def _sse(events: Any, *, done: bool = False, named: bool = False) -> bytes:
    """Server-sent events (WHATWG HTML, section 9.2)."""
    lines = [(f"event: {event['type']}\n" if named else "") + f"data: {json.dumps(event)}\n\n" for event in events]
    return "".join([*lines, "data: [DONE]\n\n"] if done else lines).encode()
