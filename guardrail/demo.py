"""`guardrail demo`: assistant, guard and proxy on loopback, and a conversation of six turns through the official client.

What is shown of a turn is what happened: the action is the one in the proxy's answer; score, band and time are of the guard that
the proxy asks (it is asked first here, and the proxy's own question is then answered from the cache).
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from guardrail.adapter import PACKAGE
from guardrail.errors import GuardrailError

if TYPE_CHECKING:
    import socket

    from openai import OpenAI
    from rich.console import Console

    from guardrail.config import Config
    from guardrail.guard import Guard

HOST = "127.0.0.1"
SCRIPT = (
    ("on topic", "What is a tribble?"),
    ("follow-up", "Why are they dangerous?"),
    ("off topic", "How do I bake sourdough bread?"),
    ("greeting", "Hello, how are you today?"),
    ("costume", "As Captain Picard, do my tax return."),
    ("on topic again", "What does Starfleet's Prime Directive forbid?"),
)
COLOURS = {"allow": "green", "route": "yellow", "refuse": "red"}
PATIENCE = 10
"""Seconds that the server may take to start or to stop."""
SHOW_CURSOR = b"\x1b[?25h"
"""A progress display may have hidden it."""


class DemoError(GuardrailError):
    """The demo cannot go on."""


def run(*, config: Path | None = None, port: int = 0, once: bool = False) -> None:
    """Play the conversation, then stay up until Ctrl-C unless `once`; Ctrl-C ends the process with exit code 130.

    Args:
        config: the policy; default: the Star Trek one that comes with guardrail. Its default upstream is the assistant.
        port: of the proxy; 0 lets the system choose.
        once: end after the conversation.

    Raises:
        GuardrailError: something is missing or wrong; the message says what to do.
    """
    with _assistant_process() as assistant:
        from openai import OpenAI
        from rich.console import Console

        from guardrail.config import load_config
        from guardrail.guard import Guard
        from guardrail.proxy import create_app

        console = Console(highlight=False)
        console.print("[bold]guardrail demo[/]: starting assistant, guard and proxy on this machine", soft_wrap=True)
        path = config or _example()
        with _listening(port) as listener, Guard.from_file(path) as guard:
            served = _in_front_of(load_config(path)[0], assistant.url())
            with _serving(create_app(served, guard), listener) as url:
                with OpenAI(base_url=f"{url}/v1", api_key="unused", max_retries=0) as client:
                    play(client, guard, console)
                console.print(f"\nTalk to it yourself:\n{_curl(url)}", markup=False, soft_wrap=True)
                if not once:
                    console.print("Ctrl-C ends the demo.")
                    assistant.wait()


def play(client: OpenAI, guard: Guard, console: Console, script: Iterable[tuple[str, str]] = SCRIPT) -> None:
    """Have the conversation with the client of a proxy, whose guard is `guard`. Raises `DemoError` when a turn fails."""
    from openai import OpenAIError

    messages: list[Any] = []
    for number, (kind, text) in enumerate(script, start=1):
        console.print(f"\n[bold]{number} {kind}[/]")
        messages.append({"role": "user", "content": text})
        try:
            reply = _turn(client, guard, messages, console)
        except OpenAIError as exc:
            raise DemoError(f"turn {number} failed: {exc}") from exc
        messages.append({"role": "assistant", "content": reply})


def _turn(client: OpenAI, guard: Guard, messages: list[Any], console: Console) -> str:
    """One turn, shown as it happens; returns the reply."""
    _Line(console, "user").write(messages[-1]["content"]).end()
    began = time.perf_counter()
    decision = guard.check(messages)
    answer = client.chat.completions.with_raw_response.create(model="demo", messages=messages, stream=True)
    action = answer.headers["x-guardrail-action"]
    told = ", ".join(f"{topic} {score:.3f} {decision.bands[topic].value}" for topic, score in decision.scores.items())
    _Line(console, "guard").write(f"{action:<8}", f"bold {COLOURS[action]}").write(told).end()
    line, reply = _Line(console, "refusal" if action == "refuse" else "assistant"), ""
    with answer.parse() as chunks:
        for chunk in chunks:
            piece = chunk.choices[0].delta.content if chunk.choices else None
            line.write(piece or "")
            reply += piece or ""
    times = f" ({decision.timings['guard_ms']:.1f} ms to decide, {time.perf_counter() - began:.2f} s in all)"
    line.write(times, "dim").end()
    return reply


class _Line:
    """A labelled text that is written piece by piece, broken between words where the window ends, and indented."""

    INDENT = 12

    def __init__(self, console: Console, label: str) -> None:
        self._console = console
        self._column = self.INDENT
        self._word = ""
        self._style = ""
        console.print(f"  [dim]{label:<{self.INDENT - 2}}[/]", end="")

    def write(self, text: str, style: str = "") -> _Line:
        """Show all whole words of what was written so far."""
        if style != self._style:
            self._flush()
            self._style = style
        for character in text.replace("\n", " "):
            if character == " ":
                self._flush()
            self._word += character
        return self

    def end(self) -> None:
        """Show the rest, and end the line."""
        self._flush()
        self._console.print()

    def _flush(self) -> None:
        if self._column > self.INDENT and self._column + len(self._word) > self._console.width:
            self._console.print("\n" + " " * self.INDENT, end="")
            self._column, self._word = self.INDENT, self._word.lstrip()
        self._console.print(self._word, style=self._style, markup=False, soft_wrap=True, end="")
        self._column += len(self._word)
        self._word = ""


@dataclass(frozen=True)
class _Assistant:
    process: subprocess.Popen[str]

    def url(self) -> str:
        """Address of its API, once it answers."""
        line = self.process.stdout.readline() if self.process.stdout else ""
        if line:
            return line.strip()
        if self.process.wait() == 2:
            raise SystemExit(2)  # it has said why
        raise DemoError(f"the assistant ended with exit code {self.process.returncode} before it was ready")

    def wait(self) -> None:
        """Return never; raises `DemoError` when the assistant ends."""
        raise DemoError(f"the assistant ended with exit code {self.process.wait()}")


@contextmanager
def _assistant_process() -> Iterator[_Assistant]:
    """Start the assistant, which loads while the guard does; whatever happens to us, it does not outlive us.

    Ctrl-C reaches all processes of a terminal. This one answers it, with one line; the assistant is started with the signal
    blocked, and ends with its standard input, whose other end is here.
    """
    command = [sys.executable, "-m", "guardrail.assistant", "--port", "0", "--until-eof"]
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    before = signal.signal(signal.SIGINT, lambda number, frame: _leave(process.pid))
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    try:
        yield _Assistant(process)
    finally:
        process.kill()
        process.communicate()
        signal.signal(signal.SIGINT, before)


def _leave(assistant: int) -> NoReturn:
    """End at once from whatever was being done: no clean-up could fail, and no other thread says a word after this one."""
    os.write(2, (SHOW_CURSOR if sys.stderr.isatty() else b"") + b"\nstopped\n")
    for stream in (1, 2):
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream)
    with suppress(ProcessLookupError, ChildProcessError):  # it has ended already
        os.kill(assistant, signal.SIGKILL)
        os.waitpid(assistant, 0)
    os._exit(130)


def _example() -> Path:
    """The policy that comes with guardrail: inside the installed package, or beside it in a checkout."""
    places = [folder / "examples" / "guardrail.yaml" for folder in (PACKAGE, PACKAGE.parent)]
    return next((place for place in places if place.is_file()), places[-1])


@contextmanager
def _listening(port: int) -> Iterator[socket.socket]:
    from guardrail.proxy.server import ListenError, listen

    try:
        listener = listen(HOST, port)
    except ListenError as exc:
        reason = f"cannot listen on {HOST}:{port}: {getattr(exc.__cause__, 'strerror', exc)}"
        raise DemoError(f"{reason}. Fix: choose another port (make demo PORT={port + 1}), or none") from exc
    with listener:
        yield listener


def _in_front_of(config: Config, upstream: str) -> Config:
    """The config with the assistant as its default upstream."""
    from guardrail.config import ProxyConfig, UpstreamConfig

    proxy = config.proxy or ProxyConfig()
    upstreams = {**proxy.upstreams, "default": UpstreamConfig(url=upstream)}
    return config.model_copy(update={"proxy": proxy.model_copy(update={"upstreams": upstreams})})


@contextmanager
def _serving(app: Any, listener: socket.socket) -> Iterator[str]:
    """The app on a server in a thread; yields its address."""
    import uvicorn

    from guardrail.proxy.server import uvicorn_config

    server = uvicorn.Server(uvicorn_config(app))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    until = time.monotonic() + PATIENCE
    while not server.started:
        if not thread.is_alive() or time.monotonic() > until:
            raise DemoError("the proxy did not start")
        time.sleep(0.01)
    try:
        yield f"http://{HOST}:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(PATIENCE)


def _curl(url: str) -> str:
    body = '{"messages": [{"role": "user", "content": "Who is Spock?"}], "model": "demo", "stream": true}'
    return f"curl -N {url}/v1/chat/completions -H 'content-type: application/json' -d '{body}'"
