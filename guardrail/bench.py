"""`guardrail bench`: what the guard costs, each figure beside a peer that was measured in the same run.

Absolute times say little on a shared machine; the ratio to a peer that ran in between does. Measured are

- scoring one turn in the form that is served, against the same adapter in torch (fp32, one thread),
- `Policy.decide` with 20 rules,
- the proxy with the guard stubbed and with the adapter, against the same requests sent to the upstream directly. Proxy and
  upstream run as processes of their own on loopback; where there are two cores, the proxy has one to itself.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING, Any

from guardrail.adapter import find_adapter, load_adapter
from guardrail.chat import Turn
from guardrail.policy import ALLOW, Observation, Policy, Rule
from guardrail.scoring import Band, Score, Scorer, Thresholds, Topic

if TYPE_CHECKING:
    import aiohttp

TURN = "so in the episode where the captain gets stuck on that moon with the other crew, who flies the ship home {n}"
"""About 20 words; the number keeps the engine's cache out of it."""
LONG = " ".join([TURN] * 6)
ECHO_REPLY = (
    b'{"id":"chatcmpl-1","object":"chat.completion","created":1,"model":"m","choices":[{"index":0,"finish_reason":"stop",'
)
ECHO_REPLY += b'"message":{"role":"assistant","content":"' + b"x" * 300 + b'"}}]}'


@dataclass(frozen=True, slots=True)
class Figure:
    """One measurement, its peer from the same run, and the ratio value / peer."""

    what: str
    unit: str
    value: float
    peer: str = ""
    peer_value: float | None = None

    @property
    def ratio(self) -> float | None:
        """Value over peer; None without a peer."""
        return None if not self.peer_value else self.value / self.peer_value


def bench(adapter: str, seconds: float, progress: Callable[[str], None]) -> Iterator[Figure]:
    """All figures; `seconds` is how long each load runs, `progress` is told what is being measured."""
    from guardrail.engine.engine import open_engine

    found = load_adapter(find_adapter(adapter))
    topic = found.manifest.topic
    progress("scoring")
    served, oracle = open_engine({topic: found}), open_engine({topic: found}, form="fp32")
    try:
        yield from _scoring(served, oracle)
        progress("policy")
        yield _policy()
    finally:
        served.close()
        oracle.close()
    yield from asyncio.run(_proxy(adapter, seconds, progress))


def _scoring(served: Scorer, oracle: Scorer) -> Iterator[Figure]:
    for name, text, count in (("20-word turn", TURN, 150), ("120-word turn", LONG, 40)):
        mine, peers = [], []
        for number in range(count):  # in turns, so that both meet the same noise
            turn = Turn(text.format(n=number))
            mine.append(_milliseconds(lambda turn=turn: served.submit(turn).result()))  # type: ignore[misc]
            peers.append(_milliseconds(lambda turn=turn: oracle.submit(turn).result()))  # type: ignore[misc]
        yield Figure(f"score a {name}, p50", "ms", statistics.median(mine), "torch fp32", statistics.median(peers))
    started = time.perf_counter()
    futures = [served.submit(Turn(TURN.format(n=10_000 + number))) for number in range(200)]
    for future in futures:
        future.result()
    yield Figure("20-word turns at once, all cores", "turns/s", len(futures) / (time.perf_counter() - started))


def _milliseconds(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return (time.perf_counter() - started) * 1000


def _policy() -> Figure:
    rule = Rule("r", ALLOW, None, {"t": frozenset({Band.NOT_RELATED})}, 2000)
    policy = Policy(allow=("t",), rules=(rule,) * 20)
    seen = Observation({"t": Score(0.9, 0.9)}, {"t": Topic(Thresholds(0.3, 0.7), "a", "1")}, 3000)
    rounds = 2000
    spent = min(_milliseconds(lambda: [policy.decide(seen) for _ in range(rounds)]) for _ in range(5))
    return Figure("Policy.decide, 20 rules", "us", spent / rounds * 1000)


async def _proxy(adapter: str, seconds: float, progress: Callable[[str], None]) -> list[Figure]:
    import aiohttp

    figures = []
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
        with _process(_run_upstream, core=1) as upstream:
            progress("upstream alone")
            direct = await _latency(session, upstream)
            for name, guard in (("guard stubbed", None), ("with the adapter", adapter)):
                progress(f"proxy, {name}")
                with _process(_run_proxy, upstream, guard, core=0) as proxy:
                    p50 = await _latency(session, proxy)
                    rate = await _rate(session, proxy, seconds)
                figures.append(Figure(f"proxy {name}: added to a request, p50", "ms", p50 - direct, "upstream alone", direct))
                figures.append(Figure(f"proxy {name}: 32 clients", "requests/s", rate))
    return figures


async def _latency(session: aiohttp.ClientSession, port: int) -> float:
    """Median milliseconds of one request after the other, the first ones left out."""
    spent = []
    for number in range(220):
        started = time.perf_counter()
        await _ask(session, port, number)
        spent.append((time.perf_counter() - started) * 1000)
    return statistics.median(spent[20:])


async def _rate(session: aiohttp.ClientSession, port: int, seconds: float, clients: int = 32) -> float:
    """Requests per second of `clients` that each send the next request when they have the answer."""
    until = time.perf_counter() + seconds
    numbers = iter(range(1000, 10**9))

    async def client() -> int:
        done = 0
        while time.perf_counter() < until:
            await _ask(session, port, next(numbers))
            done += 1
        return done

    started = time.perf_counter()
    total = sum(await asyncio.gather(*(client() for _ in range(clients))))
    return total / (time.perf_counter() - started)


async def _ask(session: aiohttp.ClientSession, port: int, number: int) -> None:
    body = {"model": "m", "messages": [{"role": "user", "content": TURN.format(n=number)}]}
    async with session.post(f"http://127.0.0.1:{port}/v1/chat/completions", json=body) as response:
        await response.read()
        if response.status != 200:
            raise RuntimeError(f"the bench got status {response.status} from port {port}")


@contextmanager
def _process(target: Callable[..., None], *arguments: Any, core: int) -> Iterator[int]:
    """A server in a process of its own; gives its port, and ends it afterwards."""
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=target, args=(there, core, *arguments), daemon=True)
    process.start()
    there.close()
    try:
        yield here.recv()
    except EOFError as exc:
        raise RuntimeError("a server of the bench did not start; its message stands above") from exc
    finally:
        process.terminate()
        process.join(10)


def _run_upstream(pipe: Connection, core: int) -> None:
    async def application(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return
        while (await receive()).get("more_body"):
            pass
        headers = [(b"content-type", b"application/json"), (b"content-length", str(len(ECHO_REPLY)).encode())]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": ECHO_REPLY})

    _serve(application, pipe, core, lifespan="off")


def _run_proxy(pipe: Connection, core: int, upstream: int, adapter: str | None) -> None:
    from guardrail.config import Config
    from guardrail.guard import Guard
    from guardrail.proxy import create_app
    from guardrail.testing import FixedScorer

    topic = {"adapter": adapter or "stub"}
    proxy = {"upstreams": {"default": {"url": f"http://127.0.0.1:{upstream}/v1"}}}
    rules = [{"if": {"topic": ["related", "unsure", "not_related"]}, "do": "allow"}]  # every turn goes on, whatever its score
    config = Config.model_validate({"topics": {"topic": topic}, "rules": rules, "proxy": proxy, "queue_limit": 1000})
    guard = Guard.from_config(config, FixedScorer(topic=0.99) if adapter is None else _engine(adapter))
    _serve(create_app(config, guard), pipe, core, lifespan="on")


def _engine(adapter: str) -> Scorer:
    from guardrail.engine.engine import open_engine

    return open_engine({"topic": load_adapter(find_adapter(adapter))}, queue_limit=1000)


def _serve(application: Any, pipe: Connection, core: int, lifespan: str) -> None:
    import socket

    import uvicorn

    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_setaffinity") else []
    if len(cores) > 1:
        os.sched_setaffinity(0, {cores[core]})
    listener = socket.create_server(("127.0.0.1", 0))
    config = uvicorn.Config(application, log_level="warning", access_log=False, lifespan=lifespan)  # type: ignore[arg-type]
    pipe.send(listener.getsockname()[1])
    with suppress(KeyboardInterrupt):
        uvicorn.Server(config).run(sockets=[listener])
