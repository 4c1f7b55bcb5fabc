"""A small OpenAI-compatible server in a thread, that records what it is asked."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

ANSWER = "Live long and prosper."
USAGE = {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}


class OpenAIServer(ThreadingHTTPServer):
    """Answers chat completions, completions and responses; `bodies` are the requests so far."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.bodies: list[Any] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: OpenAIServer

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        self.server.bodies.append(body)
        structured = "response_format" in body or "text" in body
        answer = answer_of(self.path, json.dumps({"name": "Spock"}) if structured else ANSWER)
        events = [] if not body.get("stream") else stream_of(self.path, answer)
        data = "".join(f"data: {json.dumps(event)}\n\n" for event in events) if events else json.dumps(answer)
        raw = (data + "data: [DONE]\n\n" if events else data).encode()
        self.send_response(200)
        self.send_header("content-type", "text/event-stream" if events else "application/json")
        self.send_header("content-length", str(len(raw)))
        self.end_headers()
        self.wfile.write(raw)

    def log_message(self, format: str, *args: Any) -> None:
        pass


def answer_of(path: str, text: str) -> dict[str, Any]:
    if path.endswith("/chat/completions"):
        message = {"role": "assistant", "content": text}
        choices: list[Any] = [{"index": 0, "message": message, "finish_reason": "stop"}]
        return {"id": "c", "object": "chat.completion", "created": 1, "model": "m", "choices": choices, "usage": USAGE}
    if path.endswith("/completions"):
        choices = [{"index": 0, "text": text, "finish_reason": "stop"}]
        return {"id": "c", "object": "text_completion", "created": 1, "model": "m", "choices": choices, "usage": USAGE}
    content = [{"type": "output_text", "text": text, "annotations": []}]
    item = {"type": "message", "id": "msg_1", "role": "assistant", "status": "completed", "content": content}
    fixed = {"parallel_tool_calls": True, "tool_choice": "auto", "tools": []}
    return {"id": "resp_1", "object": "response", "created_at": 1, "model": "m", "status": "completed", "output": [item], **fixed}


def stream_of(path: str, answer: dict[str, Any]) -> list[dict[str, Any]]:
    if path.endswith("/chat/completions"):
        delta = {"role": "assistant", "content": answer["choices"][0]["message"]["content"]}
        head = {**answer, "object": "chat.completion.chunk"}
        head.pop("usage")
        first = {**head, "choices": [{"index": 0, "delta": delta, "finish_reason": None}]}
        return [first, {**head, "choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}]
    if path.endswith("/completions"):
        return [answer]
    return [
        {"type": "response.created", "sequence_number": 0, "response": {**answer, "output": []}},
        {"type": "response.completed", "sequence_number": 1, "response": answer},
    ]


@contextmanager
def openai_server() -> Iterator[OpenAIServer]:
    """A running server."""
    server = OpenAIServer()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join(10)
