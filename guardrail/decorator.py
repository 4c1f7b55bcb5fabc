"""`@guarded`: a guard around a function that answers a user.

The guarded argument is the one named in `parameter`, else the first with a usual name (`messages`, `message`, `prompt` ...), else
the first. It may be a text or a list of OpenAI messages. A refused call never reaches the function; what comes back has the
function's own return shape: by its return annotation a `str`, a message dict or a `ChatCompletion`, and one piece of it from
a generator. `on_refuse="raise"` raises `Refused` instead.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, ParamSpec, TypeVar, get_type_hints

from guardrail.guard import Guard, Refused
from guardrail.policy import Decision

P = ParamSpec("P")
R = TypeVar("R")
OnRefuse = Literal["reply", "raise"]
USUAL_NAMES = ("messages", "message", "prompt", "question", "query", "text", "user_input", "input")


def guarded(
    guard: Guard | str | Path,
    *,
    on_refuse: OnRefuse = "reply",
    parameter: str | None = None,
    reply: Callable[[Decision], object] | None = None,
) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Guard a sync, async, generator or async-generator function; its signature and types stay.

    Args:
        guard: a guard, or a config file, which is loaded now: a wrong file fails at import, not at the first call.
        on_refuse: `reply` gives the refusal back in the function's return shape, `raise` raises `Refused`.
        parameter: name of the parameter to judge.
        reply: makes the refusal from the decision, for return types of your own.

    Raises:
        ConfigError, AdapterError: the config file or an adapter is wrong.
        TypeError: the function has no parameter to judge.
    """
    if on_refuse not in ("reply", "raise"):
        raise ValueError(f"on_refuse must be 'reply' or 'raise', not {on_refuse!r}")
    judge = guard if isinstance(guard, Guard) else _guard_of(Path(guard).resolve())

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        call = _Call(judge, function, parameter, on_refuse, reply)
        wrapper = functools.wraps(function)(_wrapper(call, function))
        wrapper.guard = judge  # type: ignore[attr-defined]
        return wrapper

    return decorate


@functools.lru_cache(maxsize=32)
def _guard_of(path: Path) -> Guard:
    """One guard for all functions that name the same file."""
    return Guard.from_file(path)


class _Call:
    """What all four kinds of wrapper share: find the argument, and turn a refusal into the function's shape."""

    def __init__(
        self,
        guard: Guard,
        function: Callable[..., Any],
        parameter: str | None,
        on_refuse: OnRefuse,
        reply: Callable[[Decision], object] | None,
    ) -> None:
        self.guard = guard
        self._signature = inspect.signature(function)
        self._parameter = _judged_parameter(self._signature, parameter, function)
        self._on_refuse = on_refuse
        self._reply = reply or _reply_maker(function)

    def said(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """The argument to judge; a wrong call raises the function's own `TypeError`."""
        bound = self._signature.bind(*args, **kwargs)
        bound.apply_defaults()
        return bound.arguments[self._parameter]

    def refusal(self, decision: Decision) -> Any:
        """The refusal in the function's shape; raises `Refused` if so asked."""
        if self._on_refuse == "raise":
            raise Refused(decision)
        return self._reply(decision)


def _wrapper(call: _Call, function: Callable[..., Any]) -> Any:
    if inspect.isasyncgenfunction(function):
        return _around_async_generator(call, function)
    if inspect.isgeneratorfunction(function):
        return _around_generator(call, function)
    if inspect.iscoroutinefunction(function):
        return _around_coroutine(call, function)

    def sync(*args: Any, **kwargs: Any) -> Any:
        decision = call.guard.check(call.said(args, kwargs))
        return function(*args, **kwargs) if decision.allowed else call.refusal(decision)

    return sync


def _around_coroutine(call: _Call, function: Callable[..., Any]) -> Callable[..., Any]:
    async def coroutine(*args: Any, **kwargs: Any) -> Any:
        decision = await call.guard.acheck(call.said(args, kwargs))
        return await function(*args, **kwargs) if decision.allowed else call.refusal(decision)

    return coroutine


def _around_generator(call: _Call, function: Callable[..., Any]) -> Callable[..., Any]:
    def generator(*args: Any, **kwargs: Any) -> Iterator[Any]:
        decision = call.guard.check(call.said(args, kwargs))
        if not decision.allowed:
            yield call.refusal(decision)
        else:
            yield from function(*args, **kwargs)

    return generator


def _around_async_generator(call: _Call, function: Callable[..., Any]) -> Callable[..., Any]:
    async def async_generator(*args: Any, **kwargs: Any) -> AsyncIterator[Any]:
        decision = await call.guard.acheck(call.said(args, kwargs))
        if not decision.allowed:
            yield call.refusal(decision)
            return
        pieces = function(*args, **kwargs)
        try:
            async for piece in pieces:
                yield piece
        finally:
            await pieces.aclose()

    return async_generator


def _judged_parameter(signature: inspect.Signature, parameter: str | None, function: Callable[..., Any]) -> str:
    name = getattr(function, "__qualname__", repr(function))
    names = [
        key
        for key, value in signature.parameters.items()
        if key not in ("self", "cls") and value.kind not in (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    ]
    if parameter is not None:
        if parameter not in names:
            raise TypeError(f"{name} has no parameter {parameter!r}; it has {', '.join(names) or 'none'}")
        return parameter
    usual = next((key for key in USUAL_NAMES if key in names), None)
    if usual is None and not names:
        raise TypeError(f"{name} takes no argument that could be judged")
    return usual or names[0]


def _reply_maker(function: Callable[..., Any]) -> Callable[[Decision], object]:
    """How to say no in the shape of the return annotation; unannotated functions answer with a `str`."""
    shape = _return_shape(function)
    if shape in ("dict", "Mapping", "Message", "ChatCompletionMessageParam", "TypedDict"):
        return lambda decision: {"role": "assistant", "content": decision.reply}
    if shape == "ChatCompletion":
        return _completion
    return lambda decision: decision.reply


def _return_shape(function: Callable[..., Any]) -> str:
    """Name of the returned type; of the yielded one for a generator."""
    try:
        hint = get_type_hints(function).get("return")
    except (NameError, TypeError):  # an annotation that only a type checker can resolve
        hint = None
    if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
        hint = next(iter(getattr(hint, "__args__", ())), None)
    return str(getattr(getattr(hint, "__origin__", hint), "__name__", ""))


def _completion(decision: Decision) -> object:
    from openai.types.chat import ChatCompletion

    message = {"role": "assistant", "content": decision.reply}
    choice = {"index": 0, "finish_reason": "stop", "message": message, "logprobs": None}
    usage = {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}
    fields = {"id": "chatcmpl-guardrail", "object": "chat.completion", "created": 0, "model": "guardrail"}
    return ChatCompletion.model_validate({**fields, "choices": [choice], "usage": usage})
