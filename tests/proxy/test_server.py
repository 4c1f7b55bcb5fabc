"""The proxy as a process: it says where it listens or why it cannot, and ends without cutting anybody off."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from guardrail.errors import ConfigError
from guardrail.proxy import ListenError, create_app
from guardrail.proxy.server import listen
from proxy.conftest import config_for
from proxy.servers import PATIENCE, Call, Upstream, ask, chunk, connect, post, until

PROGRAM = """
import sys
from guardrail.engine import engine
from guardrail.proxy import ListenError, serve, server
from guardrail.testing import FixedScorer
server.DRAIN_SECONDS = 1
engine.open_engine = lambda adapters, **options: FixedScorer(star_trek=0.99)
try:
    serve(sys.argv[1], ready=lambda url: print(url, flush=True))
except ListenError as exc:
    sys.exit(f"{exc}")
except KeyboardInterrupt:
    sys.exit(130)
"""


@pytest.fixture
def config_file(tmp_path: Path, upstream: Upstream) -> Callable[[int], Path]:
    """Writes a config file that listens on a port."""

    def write(port: int) -> Path:
        adapter = tmp_path / "adapter"
        adapter.mkdir()
        (adapter / "guardrail.json").write_text(json.dumps({"name": "a", "topic": "star_trek", "base": {"id": "none"}}))
        path = tmp_path / "guardrail.yaml"
        path.write_text(
            "topics: {star_trek: {adapter: ./adapter}}\nallow: [star_trek]\n"
            f'proxy: {{listen: "127.0.0.1:{port}", upstreams: {{default: {{url: "{upstream.url}/v1"}}}}}}\n'
        )
        return path

    return write


def start(config: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(config)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


@pytest.fixture
def process(config_file: Callable[[int], Path]) -> Iterator[subprocess.Popen[str]]:
    with start(config_file(0)) as process:
        yield process
        process.kill()


def test_taken_port(config_file: Callable[[int], Path]) -> None:
    """One line with the address and what to do, and a failed exit."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with start(config_file(port)) as process:
            out, error = process.communicate(timeout=PATIENCE * 3)
    assert process.returncode == 1
    assert out == ""
    assert len(error.strip().splitlines()) == 1
    assert f"127.0.0.1:{port}" in error
    assert "Fix: " in error


@pytest.mark.parametrize("host", ["192.0.2.1", "no such host"])
def test_foreign_address(host: str) -> None:
    """An address that is not ours is told as well."""
    with pytest.raises(ListenError, match=r"Fix: "):
        listen(host, 0)


def test_address_is_free_again() -> None:
    """A server that was just closed can be started again at once."""
    with closing(listen("127.0.0.1", 0)) as first:
        port = first.getsockname()[1]
    listen("127.0.0.1", port).close()


def test_sigterm_lets_streams_end(process: subprocess.Popen[str], upstream: Upstream) -> None:
    """A stream that is under way is finished, nobody new is let in, and the exit is a good one."""
    assert process.stdout is not None
    url = process.stdout.readline().strip()
    assert ask(url, "/readyz").status == 200

    async def stream(call: Call) -> None:
        await call.start(200, {"content-type": "text/event-stream"})
        await call.send(chunk({"content": "x"}))
        process.send_signal(signal.SIGTERM)
        until(lambda: not accepts(url))
        await call.send(b"data: [DONE]\n\n", more=False)

    upstream.behaviour = stream
    assert (
        ask(url, "/v1/chat/completions", {"messages": [{"role": "user", "content": "x"}], "stream": True}).events[-1] == "[DONE]"
    )
    assert process.wait(PATIENCE) == 0
    assert process.stderr is not None
    assert "Traceback" not in process.stderr.read()


def accepts(url: str) -> bool:
    try:
        socket.create_connection((urlsplit(url).hostname or "", urlsplit(url).port or 0), timeout=1).close()
    except OSError:
        return False
    return True


def test_endless_stream_is_broken_off(process: subprocess.Popen[str], upstream: Upstream) -> None:
    """After the time to drain, a stream gets an error event and no clean end."""
    assert process.stdout is not None
    url = process.stdout.readline().strip()

    async def endless(call: Call) -> None:
        await call.start(200, {"content-type": "text/event-stream"})
        await call.send(chunk({"content": "x"}))
        await call.until_gone()

    upstream.behaviour = endless
    with connect(url) as client:
        client.sendall(post(b'{"messages": [{"role": "user", "content": "x"}], "stream": true}'))
        got = b""
        while b'"x"' not in got:
            got += client.recv(65536)
        process.send_signal(signal.SIGTERM)
        got += b"".join(iter(lambda: client.recv(65536), b""))
    assert b'"code": "shutting_down"' in got
    assert not got.endswith(b"0\r\n\r\n")
    assert process.wait(PATIENCE) == 0
    assert upstream.only.gone.wait(PATIENCE)


def test_ctrl_c(process: subprocess.Popen[str]) -> None:
    """Ctrl-C ends the process without a word."""
    assert process.stdout is not None
    process.stdout.readline()
    process.send_signal(signal.SIGINT)
    assert process.wait(PATIENCE) == 130
    assert process.stderr is not None
    assert process.stderr.read() == ""


def test_wrong_config_is_told_at_once(tmp_path: Path) -> None:
    """A config without a server to ask, or with an unknown one, never starts."""
    from guardrail import Guard
    from guardrail.testing import FixedScorer

    good = config_for("http://127.0.0.1:1")
    guard = Guard.from_config(good, FixedScorer(star_trek=1.0))
    for changes in ({"proxy": {"upstreams": {}}}, {"proxy": {"upstreams": {"default": {"url": "http://127.0.0.1:1"}}}}):
        with pytest.raises(ConfigError, match=r"proxy\.upstreams"):
            create_app(config_for("http://127.0.0.1:1", **changes), guard)
    with pytest.raises(TypeError, match="needs a guard"):
        create_app(good)
    broken = tmp_path / "guardrail.yaml"
    broken.write_text("topics: {}\n")
    with pytest.raises(ConfigError):
        create_app(broken)


async def test_lifespan_closes_its_own_guard_only() -> None:
    """A guard that was given stays open."""
    from guardrail import Guard
    from guardrail.testing import FixedScorer

    closed = []

    class Noted(FixedScorer):
        def close(self) -> None:
            closed.append(True)

    config = config_for("http://127.0.0.1:1")
    proxy = create_app(config, Guard.from_config(config, Noted(star_trek=1.0)))
    messages = iter([{"type": "lifespan.startup"}, {"type": "lifespan.shutdown"}])
    sent: list[str] = []

    async def receive() -> dict[str, str]:
        return next(messages)

    async def send(message: dict[str, str]) -> None:
        sent.append(message["type"])

    await proxy({"type": "lifespan"}, receive, send)  # type: ignore[arg-type]
    assert sent == ["lifespan.startup.complete", "lifespan.shutdown.complete"]
    assert closed == []
