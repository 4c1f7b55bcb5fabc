"""README.md is run from top to bottom in an empty folder, so it cannot go stale.

A `yaml` or `python` block is saved under the name in its first line (`# guardrail.yaml`); a `python` block is then run, and the
`text` block after it is what it prints. In a `console` block lines after `$ ` are run by bash and the others are what they print,
`...` standing for anything; a command that ends in `&` stays up to the end. `bash` blocks are commands that .ci/run runs from a
fresh clone: that they are the same is checked here.
"""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parent.parent
FENCE = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
BLOCKS = FENCE.findall((ROOT / "README.md").read_text(encoding="utf-8"))


def environment() -> dict[str, str]:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return {**os.environ, "PATH": path, "OPENAI_API_KEY": "unused", "COLUMNS": "200"}


def matches(expected: str, printed: str) -> bool:
    """Whether a printed text is the expected one, `...` standing for anything."""
    pattern = ".*?".join(re.escape(part) for part in expected.strip().split("..."))
    return re.fullmatch(pattern, printed.strip(), re.DOTALL) is not None


def commands(block: str) -> Iterator[tuple[str, str]]:
    """Commands of a console block with what they print; a line that ends in a backslash goes on."""
    for part in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
        lines = part.splitlines()
        last = next(index for index, line in enumerate(lines) if not line.endswith("\\"))
        yield "\n".join(lines[: last + 1]), "\n".join(lines[last + 1 :])


def start(command: str, folder: Path) -> subprocess.Popen[bytes]:
    """Start a server and wait for its port (of proxy.listen in the file it was given)."""
    server = subprocess.Popen(["bash", "-c", f"exec {command}"], cwd=folder, env=environment())
    listen = re.search(r"listen: \S+:(\d+)", (folder / command.split()[2]).read_text())
    port = int(listen[1]) if listen else 8080
    until = time.monotonic() + 60
    while time.monotonic() < until:
        assert server.poll() is None, f"{command} ended with {server.returncode}"
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return server
        time.sleep(0.1)
    raise AssertionError(f"{command} did not open port {port}")


def run(command: list[str], folder: Path) -> str:
    result = subprocess.run(command, cwd=folder, env=environment(), capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, f"{command}: {result.stderr}"
    return result.stdout


def test_readme(tmp_path: Path) -> None:
    """Every block does what the README says it does."""
    assert {kind for kind, _ in BLOCKS} <= {"bash", "yaml", "python", "text", "console"}
    servers: list[subprocess.Popen[bytes]] = []
    printed = ""
    try:
        for kind, block in BLOCKS:
            if kind in ("yaml", "python"):
                name = block.splitlines()[0].removeprefix("# ")
                (tmp_path / name).write_text(block, encoding="utf-8")
                printed = run([sys.executable, name], tmp_path) if kind == "python" else ""
            elif kind == "text":
                assert matches(block, printed), printed
            elif kind == "console":
                for command, expected in commands(block):
                    if command.endswith(" &"):
                        servers.append(start(command.removesuffix(" &"), tmp_path))
                    else:
                        output = run(["bash", "-c", command], tmp_path)
                        assert matches(expected, output), f"{command}\n{output}"
    finally:
        for server in servers:
            server.send_signal(signal.SIGINT)
            server.wait(30)


def test_the_install_commands_are_what_ci_runs() -> None:
    """The README's `bash` blocks hold nothing that .ci/run does not do from a fresh clone."""
    ci = (ROOT / ".ci" / "run").read_text()
    lines = [line.split(" #")[0].strip() for kind, block in BLOCKS if kind == "bash" for line in block.splitlines()]
    assert lines
    assert [line for line in lines if line and line not in ci] == []


def test_the_essentials_come_first() -> None:
    """By line 40 a reader has seen install, a policy, the decorator, the proxy, a real refusal and figures."""
    top = "\n".join((ROOT / "README.md").read_text(encoding="utf-8").splitlines()[:40])
    for word in ("make demo", "pip install", "allow:", "@guarded", "guardrail serve", "AUROC", "I only chart Star Trek space."):
        assert word in top, word
