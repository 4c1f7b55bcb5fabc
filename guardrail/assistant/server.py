"""The model as an OpenAI-compatible server: chat completions plain and streamed, the list of models, health.

One conversation is answered at a time, the others queue; when a client goes, its reply is generated no further. Parameters of
sampling are read and not used: the likeliest token is taken each time.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncGenerator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from typing import Any, Literal
from uuid import uuid4

from aiohttp import web
from pydantic import BaseModel, Field, ValidationError

from guardrail.assistant import NAME
from guardrail.assistant.model import MAX_TOKENS, LanguageModel, Token
from guardrail.chat import read_messages
from guardrail.errors import UnreadableError


class _StreamOptions(BaseModel):
    include_usage: bool = False


class _ChatRequest(BaseModel):
    """What is used of a request; other keys are ignored."""

    messages: list[dict[str, Any]] = Field(min_length=1)
    n: Literal[1] | None = None
    stream: bool | None = None
    stream_options: _StreamOptions | None = None
    max_tokens: int | None = Field(default=None, ge=1)
    max_completion_tokens: int | None = Field(default=None, ge=1)

    @property
    def limit(self) -> int:
        """Most tokens of the reply."""
        return min(self.max_completion_tokens or self.max_tokens or MAX_TOKENS, MAX_TOKENS)


class Server:
    """The routes, around one model."""

    def __init__(self, model: LanguageModel) -> None:
        self._model = model
        self._turn = asyncio.Lock()
        self._worker = ThreadPoolExecutor(max_workers=1, thread_name_prefix="assistant")

    def app(self) -> web.Application:
        """The aiohttp application; run it with `handler_cancellation`, or a client that went is not noticed."""
        app = web.Application()
        app.router.add_get("/healthz", self._health)
        app.router.add_get("/v1/models", self._models)
        app.router.add_post("/v1/chat/completions", self._chat)
        return app

    async def _health(self, request: web.Request) -> web.StreamResponse:
        return web.json_response({"status": "ok"})

    async def _models(self, request: web.Request) -> web.StreamResponse:
        model = {"id": NAME, "object": "model", "created": 0, "owned_by": "HuggingFaceTB"}
        return web.json_response({"object": "list", "data": [model]})

    async def _chat(self, request: web.Request) -> web.StreamResponse:
        try:
            asked = _ChatRequest.model_validate_json(await request.read())
            prompt = self._model.prompt(read_messages(asked.messages))
        except ValidationError as exc:
            first = exc.errors()[0]
            return _invalid(first["msg"], ".".join(str(part) for part in first["loc"]) or None)
        except UnreadableError as exc:
            return _invalid(str(exc), exc.param)
        except ValueError as exc:
            return _invalid(str(exc), "messages", "context_length_exceeded")
        return await (self._stream if asked.stream else self._complete)(request, asked, prompt)

    async def _complete(self, request: web.Request, asked: _ChatRequest, prompt: list[int]) -> web.StreamResponse:
        tokens = [token async for token in self._reply(prompt, asked.limit)]
        message = {"role": "assistant", "content": "".join(token.text for token in tokens), "refusal": None}
        choice = {"index": 0, "message": message, "finish_reason": tokens[-1].finish, "logprobs": None}
        body = _head("chat.completion") | {"choices": [choice], "usage": _usage(len(prompt), len(tokens))}
        return web.json_response(body)

    async def _stream(self, request: web.Request, asked: _ChatRequest, prompt: list[int]) -> web.StreamResponse:
        response = web.StreamResponse(headers={"content-type": "text/event-stream", "cache-control": "no-cache"})
        await response.prepare(request)
        async with aclosing(self._events(asked, prompt)) as events:
            async for event in events:
                await response.write(b"data: " + event.encode() + b"\n\n")
        await response.write_eof()
        return response

    async def _events(self, asked: _ChatRequest, prompt: list[int]) -> AsyncGenerator[str, None]:
        """Data of the event stream, to its closing mark."""
        head, count = _head("chat.completion.chunk"), 0
        yield _event(head, {"role": "assistant", "content": ""})
        async with aclosing(self._reply(prompt, asked.limit)) as tokens:
            async for token in tokens:
                count += 1
                if token.text:
                    yield _event(head, {"content": token.text})
                if token.finish:
                    yield _event(head, {}, token.finish)
        if asked.stream_options is not None and asked.stream_options.include_usage:
            yield json.dumps(head | {"choices": [], "usage": _usage(len(prompt), count)})
        yield "[DONE]"

    async def _reply(self, prompt: list[int], limit: int) -> AsyncGenerator[Token, None]:
        """The reply as the worker thread makes it, a token at a time; whoever stops asking stops the work."""
        loop = asyncio.get_running_loop()
        async with self._turn:
            tokens = self._model.reply(prompt, limit)
            while (token := await loop.run_in_executor(self._worker, next, tokens, None)) is not None:
                yield token


def _head(kind: str) -> dict[str, Any]:
    return {"id": f"chatcmpl-{uuid4().hex}", "object": kind, "created": int(time.time()), "model": NAME}


def _event(head: Mapping[str, Any], delta: Mapping[str, str], finish: str | None = None) -> str:
    return json.dumps({**head, "choices": [{"index": 0, "delta": delta, "finish_reason": finish, "logprobs": None}]})


def _usage(prompt: int, completion: int) -> dict[str, int]:
    return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}


def _invalid(message: str, param: str | None, code: str | None = None) -> web.Response:
    error = {"message": message, "type": "invalid_request_error", "param": param, "code": code}
    return web.json_response({"error": error}, status=400)
