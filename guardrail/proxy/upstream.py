"""The leg to the upstreams: one pooled session, no redirects, no cookies, no retries, nothing decoded."""

from __future__ import annotations

import asyncio
import io
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass

import aiohttp
from multidict import CIMultiDict
from yarl import URL

from guardrail.config import UpstreamConfig
from guardrail.proxy import headers as header_table
from guardrail.proxy import sse
from guardrail.proxy.deadline import Deadline
from guardrail.proxy.envelope import ApiError, Header, retry_later
from guardrail.proxy.exchange import Exchange

DEFAULT = "default"
KEEP_ALIVE_SECONDS = 4.0
"""Below the 5 s after which uvicorn, and so vLLM, closes an idle connection: a POST must not meet a closing one."""
WRITE_AT_ONCE_BYTES = 512 * 1024
AUTOMATIC = ("User-Agent", "Accept", "Accept-Encoding", "Content-Type")
"""Headers that aiohttp would add; ours are complete."""
RETRY_HEADERS = (b"retry-after", b"retry-after-ms", b"x-should-retry")


@dataclass(frozen=True, slots=True)
class Call:
    """A request to an upstream; `path` is relative to its URL, `stream` asks for a body that is not compressed."""

    upstream: str
    method: str
    path: str
    headers: list[Header]
    body: bytes | None = None
    stream: bool = False


class Upstreams:
    """All upstreams of a config; at most `limit` requests are under way at once."""

    def __init__(self, configs: Mapping[str, UpstreamConfig], limit: int) -> None:
        self.configs = configs
        self._limit = limit
        self._open = 0
        self._session: aiohttp.ClientSession | None = None

    @asynccontextmanager
    async def request(self, call: Call) -> AsyncIterator[aiohttp.ClientResponse]:
        """The upstream's response once its headers are there; leaving the block early closes the connection.

        Raises `ApiError`: 503 `too_many_requests` at the limit, 502 `upstream_unreachable`, 504 `upstream_timeout`.
        """
        if self._open >= self._limit:
            raise retry_later("too_many_requests", "Too many requests are under way.")
        self._open += 1
        response = None
        try:
            response = await self._send(call)
            yield response
        finally:
            self._open -= 1
            if response is not None:
                response.close()  # a response that was read to its end has given its connection back already

    async def close(self) -> None:
        """Close the pooled connections."""
        if self._session is not None:
            await self._session.close()
            self._session = None

    async def _send(self, call: Call) -> aiohttp.ClientResponse:
        config = self.configs[call.upstream]
        try:
            with Deadline(config.headers_timeout):
                return await self._pool().request(
                    call.method,
                    URL(config.url + call.path, encoded=True),
                    headers=CIMultiDict(header_table.to_upstream(call.headers, _forwarding(call, config))),
                    data=_payload(call.body),
                    timeout=aiohttp.ClientTimeout(total=None, connect=config.connect_timeout),
                    allow_redirects=False,
                )
        except asyncio.TimeoutError as exc:
            raise ApiError(504, "upstream_timeout", "The model server did not answer in time.") from exc
        except (aiohttp.ClientError, OSError) as exc:
            raise ApiError(502, "upstream_unreachable", "The model server could not be reached.") from exc

    def _pool(self) -> aiohttp.ClientSession:
        if self._session is None:
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=KEEP_ALIVE_SECONDS, ttl_dns_cache=30),
                cookie_jar=aiohttp.DummyCookieJar(),
                auto_decompress=False,
                trust_env=False,
                raise_for_status=False,
                skip_auto_headers=AUTOMATIC,
            )
        return self._session


def _forwarding(call: Call, config: UpstreamConfig) -> header_table.Forwarding:
    return header_table.Forwarding(
        identity=call.stream,
        client_credentials=call.upstream == DEFAULT,
        api_key=None if config.api_key is None else config.api_key.get_secret_value(),
        json_body=call.body is not None,
    )


def _payload(body: bytes | None) -> bytes | io.BytesIO | None:
    """Large bodies are written in pieces, so that they do not hold up the event loop."""
    return io.BytesIO(body) if body is not None and len(body) > WRITE_AT_ONCE_BYTES else body


async def relay(response: aiohttp.ClientResponse, exchange: Exchange, idle_timeout: float) -> None:
    """Pass a response on, piece by piece as it arrives.

    A piece is read when the one before has been taken. Raises `ApiError` for a redirect or a server error that is no JSON, and,
    after the start, when the upstream breaks off or one of both sides stalls for `idle_timeout` seconds.
    """
    _check_status(response)
    content_type = response.headers.get("Content-Type", "").lower()
    if content_type.startswith("text/event-stream") and response.headers.get("Content-Encoding", "identity") == "identity":
        exchange.tail = sse.Tail()
    await exchange.start(response.status, header_table.to_client(response.raw_headers))
    try:
        with Deadline(idle_timeout) as deadline:
            async for piece in response.content.iter_any():
                deadline.extend()
                await exchange.send(piece)
                deadline.extend()
    except asyncio.TimeoutError as exc:
        raise ApiError(504, "upstream_timeout", "The model server stopped sending.") from exc
    except (aiohttp.ClientError, OSError) as exc:
        raise ApiError(502, "upstream_disconnected", "The model server broke off its answer.") from exc
    await exchange.finish()


def _check_status(response: aiohttp.ClientResponse) -> None:
    """A redirect would lead the client past the guard; an error page of a server in between may name internal addresses."""
    status = response.status
    if 300 <= status < 400 or not 200 <= status < 600:
        raise ApiError(502, "upstream_redirected", "The model server answered with a redirect.")
    if status >= 500 and "json" not in response.headers.get("Content-Type", "").lower():
        kept = [header for header in header_table.to_client(response.raw_headers) if header[0] in RETRY_HEADERS]
        raise ApiError(status, "upstream_error", "The model server failed.", headers=kept)
