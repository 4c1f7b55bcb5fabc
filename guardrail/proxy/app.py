"""The ASGI app: path and method, size-bounded body, strict JSON, the user's turn, the verdict, and only then an upstream."""

from __future__ import annotations

import asyncio
import logging
import traceback
from dataclasses import replace
from pathlib import Path

from guardrail.chat import Turn
from guardrail.config import Config, ProxyConfig, load_config
from guardrail.errors import ConfigError, Problem, UnreadableError
from guardrail.guard import Guard, Judgement
from guardrail.policy import Action, Request
from guardrail.proxy import headers as header_table
from guardrail.proxy.apis import Api, Edits
from guardrail.proxy.asgi import ClientGone, Receive, Scope, Send, while_connected
from guardrail.proxy.body import read_json
from guardrail.proxy.endpoints import Endpoint, Kind, Match, find
from guardrail.proxy.envelope import ApiError, retry_later
from guardrail.proxy.exchange import Exchange
from guardrail.proxy.strict_json import Json
from guardrail.proxy.upstream import DEFAULT, Call, Upstreams, relay

log = logging.getLogger("guardrail.proxy")

STRICTNESS = (Action.ALLOW, Action.ROUTE, Action.REFUSE)


class Proxy:
    """An ASGI app that answers for an OpenAI-compatible server and asks it only what the guard lets pass."""

    def __init__(self, config: ProxyConfig, guard: Guard, *, owns_guard: bool) -> None:
        self.config = config
        self.guard = guard
        self._owns_guard = owns_guard
        self._upstreams = Upstreams(config.upstreams, config.max_connections)

    def adopt(self, config: Config) -> None:
        """Take over the proxy settings of a config that was loaded again; an upstream that is gone stays for requests under way.

        Raises `ConfigError` for settings that need a restart or do not fit.
        """
        new = config.proxy or ProxyConfig()
        if new.listen != self.config.listen:
            fix = f"set it back to {self.config.listen}, or restart"
            raise ConfigError([Problem("config", None, "proxy.listen", "cannot change while the proxy runs", fix)])
        _check_upstreams(new, frozenset(), "config")
        self.config = new.model_copy(update={"upstreams": {**self.config.upstreams, **new.upstreams}})
        self._upstreams.configs = self.config.upstreams

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection, as ASGI has it."""
        if scope["type"] == "http":
            await self._http(scope, receive, send)
        elif scope["type"] == "lifespan":
            await self._lifespan(receive, send)
        elif scope["type"] == "websocket":
            await receive()
            await send({"type": "websocket.close", "code": 1008})  # before it was accepted: 403

    async def _lifespan(self, receive: Receive, send: Send) -> None:
        await receive()
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await self._upstreams.close()
        if self._owns_guard:
            await asyncio.to_thread(self.guard.close)
        await send({"type": "lifespan.shutdown.complete"})

    async def _http(self, scope: Scope, receive: Receive, send: Send) -> None:
        exchange = Exchange(scope, send)
        try:
            await self._serve(exchange, _path(scope), receive)
        except ClientGone:
            exchange.outcome = "client_gone"
        except ApiError as exc:
            await exchange.fail(exc)
        except asyncio.CancelledError:  # the server has waited long enough for its requests to end
            await exchange.fail(retry_later("shutting_down", "This server is shutting down."))
        except Exception as exc:
            _log_fault(exchange, exc)
            await exchange.fail(ApiError(500, "internal_error", "The guardrail proxy failed; its log says why."))
        finally:
            _log_line(exchange)

    async def _serve(self, exchange: Exchange, raw_path: bytes, receive: Receive) -> None:
        match = find(exchange.method, raw_path)
        endpoint = match.endpoint
        exchange.endpoint = endpoint.path
        header_table.check(exchange.headers)
        if endpoint.kind is Kind.OWN:
            await self._own(exchange, endpoint)
        elif endpoint.kind is Kind.PASS:
            call = Call(DEFAULT, exchange.method, match.upstream_path, exchange.headers)
            await while_connected(receive, self._forward(exchange, call), exchange.is_done)
        elif endpoint.api is not None:
            raw, body = await read_json(
                exchange.headers, receive, max_bytes=self.config.max_body_bytes, timeout=self.config.body_timeout
            )
            work = self._guarded(exchange, match, endpoint.api, raw, body)
            await while_connected(receive, work, exchange.is_done)

    async def _own(self, exchange: Exchange, endpoint: Endpoint) -> None:
        if endpoint.path == "/readyz" and (await self.guard.acheck(Turn("ready?"))).error is not None:
            raise retry_later("guard_unavailable", "The guard cannot score.")
        await exchange.answer(200, b'{"status": "ok"}')

    async def _guarded(self, exchange: Exchange, match: Match, api: Api, raw: bytes, body: Json) -> None:
        judgement = await self._judge(exchange, match, api, body)
        decision = exchange.decision = judgement.decision
        if decision.action is Action.REFUSE:
            if decision.error is not None:
                raise retry_later("guard_unavailable", "The guard could not judge the request.", decision.retry_after or 1.0)
            await exchange.reply(api.refusal(body, decision.reply))
            return
        name, edits = DEFAULT, Edits(dropped=frozenset(judgement.dropped))
        if decision.action is Action.ROUTE and decision.route is not None:
            name = decision.route
            edits = replace(edits, model=self.config.upstreams[name].model, system=self.config.upstreams[name].system)
        raw = api.forwarded(raw, body, edits)
        stream = body.get("stream") is True
        await self._forward(exchange, Call(name, "POST", match.upstream_path, exchange.headers, raw, stream))

    async def _judge(self, exchange: Exchange, match: Match, api: Api, body: Json) -> Judgement:
        """The strictest judgement on what the user says."""
        wanted = self.guard.policies.headers_used()
        request = Request(
            model=body.get("model") or "",
            upstream=DEFAULT,
            endpoint=f"/v1{match.upstream_path}",
            headers={name: exchange.header(name) for name in wanted},
        )
        try:
            judgements = await asyncio.gather(*(self.guard.ajudge(said, request=request) for said in api.said(body)))
        except UnreadableError as exc:
            raise ApiError(400, "unsupported_content", f"Not judged: {str(exc)[:300]}", param=exc.param) from exc
        return max(judgements, key=lambda judgement: STRICTNESS.index(judgement.decision.action))

    async def _forward(self, exchange: Exchange, call: Call) -> None:
        exchange.upstream = call.upstream
        async with self._upstreams.request(call) as response:
            await relay(response, exchange, self.config.upstreams[call.upstream].idle_timeout)


def create_app(config: Config | str | Path, guard: Guard | None = None) -> Proxy:
    """The proxy as an ASGI app.

    Args:
        config: a config file, or a config that was loaded; then a guard goes with it.
        guard: judges the turns. Without one the config file's own guard is opened, now, and closed when the app shuts down.

    Raises:
        ConfigError: something is wrong with the config, or it names no upstream `default`.
        AdapterError: an adapter cannot be used.
    """
    file = "config" if isinstance(config, Config) else str(config)
    loaded = config if isinstance(config, Config) else load_config(config)[0]
    if guard is None and isinstance(config, Config):
        raise TypeError("a config that was loaded needs a guard: create_app(config, Guard.from_config(config, scorer))")
    proxy = loaded.proxy or ProxyConfig()
    routes = frozenset() if guard is None else guard.policies.routes_used()  # those of a file were checked with it
    _check_upstreams(proxy, routes, file)
    return Proxy(proxy, guard or Guard.from_file(file), owns_guard=guard is None)


def _check_upstreams(proxy: ProxyConfig, routes: frozenset[str], file: str) -> None:
    missing = sorted({DEFAULT, *routes} - set(proxy.upstreams))
    if missing:
        fix = f'add `upstreams: {{{missing[0]}: {{url: "http://127.0.0.1:11434/v1"}}}}` under proxy'
        raise ConfigError(
            [Problem(file, None, f"proxy.upstreams.{name}", "there is no such server to ask", fix) for name in missing]
        )


def _path(scope: Scope) -> bytes:
    """The path as it came over the wire, without the prefix that the app is mounted under."""
    raw = scope.get("raw_path")
    path: bytes = scope["path"].encode() if raw is None else raw
    return path.removeprefix(scope.get("root_path", "").encode())


def _log_line(exchange: Exchange) -> None:
    """What happened, without a word of what was said."""
    log.info(
        "request_id=%s endpoint=%s action=%s upstream=%s status=%d outcome=%s ms=%.1f",
        exchange.request_id,
        exchange.endpoint,
        "-" if exchange.decision is None else exchange.decision.action.value,
        exchange.upstream,
        exchange.status,
        exchange.outcome,
        exchange.seconds * 1000,
    )


def _log_fault(exchange: Exchange, exc: Exception) -> None:
    """Where a fault of ours is; its message could hold what was said."""
    place = "".join(traceback.format_tb(exc.__traceback__))
    log.error("request_id=%s %s\n%s", exchange.request_id, type(exc).__name__, place)
