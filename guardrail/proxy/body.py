"""The request body: its headers are checked before a byte is read, its size and time while it arrives."""

from __future__ import annotations

import asyncio

from guardrail.proxy.asgi import ClientGone, Receive
from guardrail.proxy.deadline import Deadline
from guardrail.proxy.envelope import ApiError, Header
from guardrail.proxy.strict_json import Json, read_object

CLOSE: Header = (b"connection", b"close")
THREAD_FROM_BYTES = 256 * 1024
"""Larger bodies are parsed on a worker thread: about 2 ms of parsing."""


async def read_json(headers: list[Header], receive: Receive, *, max_bytes: int, timeout: float) -> tuple[bytes, Json]:
    """The body as it came and as JSON.

    Raises `ApiError`: 415 unless it is plain UTF-8 JSON by its headers, 413 past `max_bytes`, 408 after `timeout` seconds,
    400 for what `read_object` refuses. Raises `ClientGone`.
    """
    check_headers(headers, max_bytes)
    raw = await _read(receive, max_bytes, timeout)
    return raw, await asyncio.to_thread(read_object, raw) if len(raw) > THREAD_FROM_BYTES else read_object(raw)


def check_headers(headers: list[Header], max_bytes: int) -> None:
    """Raise `ApiError` 415 or 413 for a body that need not be read."""
    kinds = [value for name, value in headers if name == b"content-type"]
    if len(kinds) != 1 or not _is_json(kinds[0]):
        raise ApiError(415, "unsupported_media_type", "Content-Type must be application/json (in UTF-8).", headers=[CLOSE])
    if any(value.strip().lower() not in (b"", b"identity") for name, value in headers if name == b"content-encoding"):
        raise ApiError(415, "unsupported_content_encoding", "Send the body without Content-Encoding.", headers=[CLOSE])
    lengths = [value for name, value in headers if name == b"content-length"]
    if any(value.isdigit() and int(value[:20]) > max_bytes for value in lengths):
        raise _too_large(max_bytes)


def _is_json(content_type: bytes) -> bool:
    kind, *parameters = (part.strip().lower() for part in content_type.split(b";"))
    plain = {b"charset=utf-8", b'charset="utf-8"', b""}
    return kind == b"application/json" and set(parameters) <= plain


async def _read(receive: Receive, max_bytes: int, timeout: float) -> bytes:
    pieces: list[bytes] = []
    size = 0
    try:
        with Deadline(timeout):
            while True:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise ClientGone
                piece = message.get("body", b"")
                size += len(piece)
                if size > max_bytes:
                    raise _too_large(max_bytes)
                pieces.append(piece)
                if not message.get("more_body", False):
                    return b"".join(pieces)
    except asyncio.TimeoutError as exc:
        raise ApiError(408, "request_timeout", "The body did not arrive in time.", headers=[CLOSE]) from exc


def _too_large(max_bytes: int) -> ApiError:
    return ApiError(413, "request_too_large", f"The body is larger than {max_bytes} bytes.", headers=[CLOSE])
