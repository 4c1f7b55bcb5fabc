"""`@guarded`: a guard around a function that answers a user.

The guarded argument is the one named (or counted) by `parameter`, else the first with a usual name (`messages`, `message`,
`prompt` ...), else the first. It may be a text, OpenAI messages, a message, or a mapping or pydantic model that holds one of
these under a usual name. A refused call never reaches the function; what comes back has the function's own return shape: by its
return annotation a `str`, a message dict, a `ChatCompletion`, or a stream of `str` or `ChatCompletionChunk`. `on_refuse="raise"`
raises `Refused` instead. Refused earlier turns are taken out of the messages that the function gets (see `Guard.judge`).
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import AsyncIterator, Awaitable, Callable, Generator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, ParamSpec, TypeVar, get_args, get_origin, get_type_hints

from guardrail.chat import Turn
from guardrail.errors import UnreadableError
from guardrail.guard import Guard, Judgement, Refused
from guardrail.policy import Action, Decision

P = ParamSpec("P")
R = TypeVar("R")
OnRefuse = Literal["reply", "raise"]
History = Callable[..., Any]
USUAL_NAMES = ("messages", "message", "prompt", "question", "query", "text", "user_input", "input")
STREAMS = frozenset({"Iterator", "Iterable", "Generator", "Stream"})
ASYNC_STREAMS = frozenset({"AsyncIterator", "AsyncIterable", "AsyncGenerator", "AsyncStream"})


def guarded(
    guard: Guard | str | Path,
    *,
    on_refuse: OnRefuse = "reply",
    parameter: str | int | None = None,
    reply: Callable[[Decision], object] | None = None,
    history: History | None = None,
    routes: Mapping[str, Callable[..., Any]] = MappingProxyType({}),
) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Guard a sync, async, generator or async-generator function, method, callable or partial; signature and types stay.

    Args:
        guard: a guard, or a config file, which is loaded now: a wrong file fails at import, not at the first call.
        on_refuse: `reply` gives the refusal back in the function's return shape, `raise` raises `Refused`.
        parameter: name or place of the parameter to judge; a method's `self` does not count.
        reply: makes the refusal from the decision, for return types of your own.
        history: called with the function's arguments, gives the conversation before: OpenAI messages, or texts of the user. May
            be a coroutine function where the function is asynchronous.
        routes: functions to call instead, by upstream name, when the policy routes; without one the function itself is called.

    Raises:
        ConfigError, AdapterError: the config file or an adapter is wrong.
        TypeError: the function has no parameter to judge.
    """
    if on_refuse not in ("reply", "raise"):
        raise ValueError(f"on_refuse must be 'reply' or 'raise', not {on_refuse!r}")
    judge = guard if isinstance(guard, Guard) else _guard_of(Path(guard).resolve())

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        call = _Function(judge, function, parameter, on_refuse, reply, history, routes)
        wrapper = functools.wraps(function)(_wrapper(call))
        wrapper.guard = judge  # type: ignore[attr-defined]
        return wrapper

    return decorate


@functools.lru_cache(maxsize=32)
def _guard_of(path: Path) -> Guard:
    """One guard for all functions that name the same file."""
    return Guard.from_file(path)


class _Function:
    """What all four kinds of wrapper share: find the argument, and turn a refusal into the function's shape."""

    def __init__(
        self,
        guard: Guard,
        function: Callable[..., Any],
        parameter: str | int | None,
        on_refuse: OnRefuse,
        reply: Callable[[Decision], object] | None,
        history: History | None,
        routes: Mapping[str, Callable[..., Any]],
    ) -> None:
        self.guard = guard
        self.function = function
        self.body = _body(function)
        self.history = history
        self._signature = inspect.signature(function)
        self._parameter = _judged_parameter(self._signature, parameter, function)
        self._on_refuse = on_refuse
        self._routes = routes
        self._reply = reply
        self._container, self._element = _return_shape(self.body)

    def call(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> inspect.BoundArguments:
        """The arguments by name; a wrong call raises the function's own `TypeError`."""
        bound = self._signature.bind(*args, **kwargs)
        bound.apply_defaults()
        return bound

    def said(self, bound: inspect.BoundArguments, earlier: Any) -> Any:
        """What to judge: the argument, behind the conversation before it."""
        said = _said(bound.arguments[self._parameter])
        if earlier is None:
            return said
        now = said if isinstance(said, list) else [{"role": "user", "content": said}]
        return [*_conversation(earlier), *now]

    def chosen(self, judgement: Judgement, bound: inspect.BoundArguments, earlier: Any) -> Callable[[], Any]:
        """The call to make: this function or the one that the policy routes to, without the refused turns."""
        decision = judgement.decision
        function = self._routes.get(decision.route or "") if decision.action is Action.ROUTE else None
        before = len(_conversation(earlier)) if earlier is not None else 0
        dropped = {place - before for place in judgement.dropped if place >= before}
        if dropped:
            bound.arguments[self._parameter] = _without(bound.arguments[self._parameter], dropped)
        return functools.partial(function or self.function, *bound.args, **bound.kwargs)

    def pieces(self, decision: Decision) -> list[Any]:
        """The refusal as the pieces of a stream; raises `Refused` if so asked."""
        if self._on_refuse == "raise":
            raise Refused(decision)
        if self._reply is not None:
            return [self._reply(decision)]
        if self._element == "ChatCompletionChunk":
            return _chunks(decision)
        return [_in_shape(decision, self._element)]

    def refusal(self, decision: Decision) -> Any:
        """The refusal in the function's shape; raises `Refused` if so asked."""
        pieces = self.pieces(decision)
        if self._reply is not None or self._container not in STREAMS | ASYNC_STREAMS:
            return pieces[0]
        return iter(pieces) if self._container in STREAMS else _async_iterator(pieces)


def _body(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function inside a partial or an object that can be called: it tells its kind and what it returns."""
    while isinstance(function, functools.partial):
        function = function.func
    return function if inspect.isroutine(function) else type(function).__call__


def _wrapper(call: _Function) -> Any:
    if inspect.isasyncgenfunction(call.body):
        return _around_async_generator(call)
    if inspect.isgeneratorfunction(call.body):
        return _around_generator(call)
    if inspect.iscoroutinefunction(call.body):
        return _around_coroutine(call)

    def sync(*args: Any, **kwargs: Any) -> Any:
        judgement, bound, earlier = _judge(call, args, kwargs)
        return call.chosen(judgement, bound, earlier)() if judgement.decision.allowed else call.refusal(judgement.decision)

    return sync


def _judge(call: _Function, args: Any, kwargs: Any) -> tuple[Judgement, inspect.BoundArguments, Any]:
    bound = call.call(args, kwargs)
    earlier = call.history(*args, **kwargs) if call.history else None
    return call.guard.judge(call.said(bound, earlier)), bound, earlier


async def _ajudge(call: _Function, args: Any, kwargs: Any) -> tuple[Judgement, inspect.BoundArguments, Any]:
    bound = call.call(args, kwargs)
    earlier = call.history(*args, **kwargs) if call.history else None
    if isinstance(earlier, Awaitable):
        earlier = await earlier
    return await call.guard.ajudge(call.said(bound, earlier)), bound, earlier


def _around_coroutine(call: _Function) -> Callable[..., Any]:
    async def coroutine(*args: Any, **kwargs: Any) -> Any:
        judgement, bound, earlier = await _ajudge(call, args, kwargs)
        if judgement.decision.allowed:
            return await call.chosen(judgement, bound, earlier)()
        return call.refusal(judgement.decision)

    return coroutine


def _around_generator(call: _Function) -> Callable[..., Any]:
    def generator(*args: Any, **kwargs: Any) -> Generator[Any, Any, Any]:
        judgement, bound, earlier = _judge(call, args, kwargs)
        if judgement.decision.allowed:
            return (yield from call.chosen(judgement, bound, earlier)())
        yield from call.pieces(judgement.decision)
        return None

    return generator


def _around_async_generator(call: _Function) -> Callable[..., Any]:
    async def async_generator(*args: Any, **kwargs: Any) -> AsyncIterator[Any]:
        judgement, bound, earlier = await _ajudge(call, args, kwargs)
        if not judgement.decision.allowed:
            for piece in call.pieces(judgement.decision):
                yield piece
            return
        pieces = call.chosen(judgement, bound, earlier)()
        try:
            async for piece in pieces:
                yield piece
        finally:
            await pieces.aclose()

    return async_generator


async def _async_iterator(pieces: list[Any]) -> AsyncIterator[Any]:
    for piece in pieces:
        yield piece


def _judged_parameter(signature: inspect.Signature, parameter: str | int | None, function: Callable[..., Any]) -> str:
    name = getattr(function, "__qualname__", repr(function))
    names = [
        key
        for key, value in signature.parameters.items()
        if key not in ("self", "cls") and value.kind not in (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    ]
    if isinstance(parameter, int):
        if not 0 <= parameter < len(names):
            raise TypeError(f"{name} has no parameter at place {parameter}; it has {', '.join(names) or 'none'}")
        return names[parameter]
    if parameter is not None:
        if parameter not in names:
            raise TypeError(f"{name} has no parameter {parameter!r}; it has {', '.join(names) or 'none'}")
        return parameter
    usual = next((key for key in USUAL_NAMES if key in names), None)
    if usual is None and not names:
        raise TypeError(f"{name} takes no argument that could be judged")
    return usual or names[0]


def _said(value: Any) -> Any:
    """The text, messages or turn in an argument; models become mappings. Raises `UnreadableError` where there is none."""
    if isinstance(value, (str, Turn)):
        return value
    value = _plain(value)
    if isinstance(value, Mapping):
        key = _usual_key(value)
        if "role" in value:
            return [value]
        if key is None:
            raise UnreadableError(f"none of {', '.join(USUAL_NAMES)} is in the argument", "argument")
        return _said(value[key])
    if isinstance(value, Sequence) and not isinstance(value, (bytes, bytearray)):
        return [_plain(message) for message in value]
    raise UnreadableError(f"cannot judge {type(value).__name__}: give a text, messages, or a model that holds them", "argument")


def _usual_key(value: Mapping[str, Any]) -> str | None:
    return next((key for key in USUAL_NAMES if value.get(key) is not None), None)


def _plain(value: Any) -> Any:
    """A pydantic model as a mapping; anything else as it is."""
    return value.model_dump() if hasattr(value, "model_dump") else value


def _conversation(earlier: Any) -> list[Any]:
    """Messages of a conversation; a text is a user turn that was answered."""
    found: list[Any] = []
    for message in earlier:
        if isinstance(message, str):
            found += [{"role": "user", "content": message}, {"role": "assistant", "content": ""}]
        else:
            found.append(_plain(message))
    return found


def _without(value: Any, dropped: set[int]) -> Any:
    """An argument without some of its messages, in its own form."""
    if isinstance(value, Sequence):
        return [message for place, message in enumerate(value) if place not in dropped]
    key = _usual_key(_plain(value)) or ""
    if isinstance(value, Mapping):
        return {**value, key: _without(value[key], dropped)}
    return value.model_copy(update={key: _without(getattr(value, key), dropped)})


def _return_shape(function: Callable[..., Any]) -> tuple[str, str]:
    """Names of the returned type and, for a stream, of its pieces; empty without an annotation."""
    try:
        hint = get_type_hints(function).get("return")
    except (NameError, TypeError):  # an annotation that only a type checker can resolve
        return "", ""
    container = _name(get_origin(hint) or hint)
    if container in STREAMS | ASYNC_STREAMS:
        return container, _name(next(iter(get_args(hint)), None))
    return container, container


def _name(hint: Any) -> str:
    return str(getattr(get_origin(hint) or hint, "__name__", ""))


def _in_shape(decision: Decision, shape: str) -> object:
    """The refusal as one value; unannotated functions answer with a `str`."""
    if shape in ("dict", "Mapping", "Message", "ChatCompletionMessageParam", "TypedDict"):
        return {"role": "assistant", "content": decision.reply}
    return _completion(decision) if shape == "ChatCompletion" else decision.reply


def _completion(decision: Decision) -> object:
    from openai.types.chat import ChatCompletion

    message = {"role": "assistant", "content": decision.reply}
    choice = {"index": 0, "finish_reason": "stop", "message": message, "logprobs": None}
    usage = {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}
    fields = {"id": "chatcmpl-guardrail", "object": "chat.completion", "created": 0, "model": "guardrail"}
    return ChatCompletion.model_validate({**fields, "choices": [choice], "usage": usage})


def _chunks(decision: Decision) -> list[Any]:
    from openai.types.chat import ChatCompletionChunk

    head = {"id": "chatcmpl-guardrail", "object": "chat.completion.chunk", "created": 0, "model": "guardrail"}
    steps: list[tuple[dict[str, str], str | None]] = [({"role": "assistant", "content": decision.reply}, None), ({}, "stop")]
    choices = [{"index": 0, "delta": delta, "finish_reason": finish} for delta, finish in steps]
    return [ChatCompletionChunk.model_validate({**head, "choices": [choice]}) for choice in choices]
