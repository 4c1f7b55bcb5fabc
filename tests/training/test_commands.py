from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from training.names import PARTS
from training.run import Run
from training.train import last_checkpoint

COMMANDS = ("generate", "split", "train", "calibrate", "evaluate", "card", "all")


def training(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(_command(*arguments), capture_output=True, text=True, timeout=240, check=False)


def _command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "training", *map(str, arguments)]


def test_help_names_every_step() -> None:
    """`python -m training --help` lists the steps of the chain."""
    answer = training("--help")
    assert answer.returncode == 0
    assert all(command in answer.stdout for command in COMMANDS)


def test_wrong_input_is_one_line_and_exit_code_2(tmp_path: Path) -> None:
    """A mistake is one line on stderr, without a traceback."""
    answer = training("train", "no_such_recipe", "--runs", tmp_path)
    assert (answer.returncode, answer.stdout) == (2, "")
    assert answer.stderr.startswith("error: no recipe 'no_such_recipe'")
    assert len(answer.stderr.strip().splitlines()) == 1


def test_generate_and_split_tell_what_every_part_holds(prepared: Run, tmp_path: Path) -> None:
    """The commands write the same files as the functions, and print the counts."""
    for command in ("generate", "split"):
        answer = training(command, prepared.recipe_file, "--runs", tmp_path)
        assert answer.returncode == 0, answer.stderr
    assert "what every part holds" in answer.stdout
    run = Run(prepared.recipe, prepared.recipe_file, tmp_path / "tiny", tmp_path)
    for part in PARTS:
        assert str(len(run.examples(part))) in (run.folder / "DATA.md").read_text()
        assert run.file(part).read_bytes() == prepared.file(part).read_bytes()


def test_ctrl_c_stops_with_one_line_and_can_be_resumed(prepared: Run, tmp_path: Path) -> None:
    """Ctrl-C in the middle of training: exit code 130, one line, and a checkpoint that --resume finishes from."""
    run = _copy(prepared, tmp_path)
    options = ("train", prepared.recipe_file, "--runs", tmp_path, "--adapters", tmp_path / "adapters")
    with subprocess.Popen(_command(*options), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
        while process.poll() is None and last_checkpoint(run.checkpoints) is None:
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        errors = process.stderr.read() if process.stderr else ""
    assert process.returncode == 130
    assert errors.strip().splitlines()[-1] == "stopped; --resume goes on from the last checkpoint"
    assert "Traceback" not in errors
    assert training(*options, "--resume").returncode == 0
    assert (run.adapter / "adapter_model.safetensors").is_file()


def test_two_processes_share_the_work(prepared: Run, tmp_path: Path) -> None:
    """`--processes 2` trains with accelerate launch on two CPU processes, in the same number of steps."""
    run = _copy(prepared, tmp_path)
    options = ("--processes", 2, "--set", "train.epochs=1", "--runs", tmp_path, "--adapters", tmp_path / "adapters")
    answer = training("train", prepared.recipe_file, *options)
    assert answer.returncode == 0, answer.stderr
    log = json.loads((run.folder / "train.json").read_text())
    assert log["processes"] == 2
    assert log["steps"] == -(-log["rows"] // 16)


def _copy(prepared: Run, folder: Path) -> Run:
    """A run of its own on the same data."""
    run = Run(prepared.recipe, prepared.recipe_file, folder / "tiny", folder / "adapters" / "chess-tiny")
    run.folder.mkdir()
    for part in PARTS:
        os.link(prepared.file(part), run.file(part))
    return run
