"""The proxy as a process: uvicorn with uvloop and httptools, bound to loopback unless told otherwise."""

from __future__ import annotations

import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import current_thread, main_thread
from types import FrameType

import uvicorn

from guardrail.config import Config, ProxyConfig, load_config
from guardrail.errors import GuardrailError
from guardrail.proxy.app import Proxy, create_app
from guardrail.proxy.asgi import App
from guardrail.reload import ReloadingGuard

DRAIN_SECONDS = 30
KEEP_ALIVE_SECONDS = 75
"""Above the 60 s of common load balancers, so that they, not we, close an idle connection."""
STALLED_CLIENT_MS = 120_000


class ListenError(GuardrailError):
    """The address cannot be listened on."""


def serve(
    config_path: str | Path,
    *,
    host: str | None = None,
    port: int | None = None,
    ready: Callable[[str], None] | None = None,
) -> None:
    """Serve until SIGTERM or Ctrl-C; requests under way get `DRAIN_SECONDS` to end.

    The file is followed: what changes in it is taken up whole or not at all, on SIGHUP too; the logger `guardrail.reload` tells.

    Args:
        config_path: the config file.
        host: instead of the host of `proxy.listen`.
        port: instead of its port; 0 lets the system choose.
        ready: called with the proxy's URL as soon as it answers.

    Raises:
        ConfigError, AdapterError: as `create_app`.
        ListenError: the address is taken, not ours, or needs rights.
        KeyboardInterrupt: after Ctrl-C, when all is shut down.
    """
    config = load_config(config_path)[0]
    proxy = config.proxy or ProxyConfig()
    listener = listen(host or proxy.host, proxy.port if port is None else port)
    with listener, _quiet_sigterm(), _following(config_path, config) as app:
        _Server(uvicorn_config(app), ready or (lambda url: None)).run(sockets=[listener])


@contextmanager
def _following(path: str | Path, config: Config) -> Iterator[Proxy]:
    """The app with a guard that follows the config file."""
    apps: list[Proxy] = []  # none yet when the guard is loaded for the first time

    def adopt(new: Config) -> None:
        for app in apps:
            app.adopt(new)

    with ReloadingGuard(path, accept=adopt) as guard:
        app = create_app(config, guard)
        apps.append(app)
        if current_thread() is main_thread():
            guard.watch(on_sighup=hasattr(signal, "SIGHUP"))
        yield app


def listen(host: str, port: int) -> socket.socket:
    """A socket bound to the address; it accepts nobody before the server runs. Raises `ListenError` with the fix."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        listener = socket.socket(family, kind, protocol)
    except OSError as exc:
        fix = "Fix: set proxy.listen to an address of this machine"
        raise ListenError(f"cannot listen on {host}: {exc.strerror}. {fix}") from exc
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if hasattr(socket, "TCP_USER_TIMEOUT"):  # Linux: drops a client that has stopped reading
            listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, STALLED_CLIENT_MS)
        listener.bind(address)
    except OSError as exc:
        listener.close()
        fix = f"Fix: stop what listens there, or set another port: proxy.listen: {host}:{port + 1}"
        raise ListenError(f"cannot listen on {host}:{port}: {exc.strerror}. {fix}") from exc
    return listener


def uvicorn_config(app: App) -> uvicorn.Config:
    """How the app is served; upstream headers pass as they are, and no header of a client says who it is."""
    return uvicorn.Config(
        app,
        loop="auto",
        http="httptools",
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        date_header=False,
        proxy_headers=False,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=DRAIN_SECONDS,
    )


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config, ready: Callable[[str], None]) -> None:
        super().__init__(config)
        self._ready = ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started and sockets:
            host, port = sockets[0].getsockname()[:2]
            self._ready(f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}")


@contextmanager
def _quiet_sigterm() -> Iterator[None]:
    """A drained server ends well: uvicorn raises the signal again when it is done, which would kill the process."""
    if current_thread() is not main_thread():
        yield
        return

    def ignore(number: int, frame: FrameType | None) -> None:
        pass

    before = signal.signal(signal.SIGTERM, ignore)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
