"""The command line with the shipped adapter: formats, exit codes, and mistakes told in one line."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

CONFIG = """\
topics: {star_trek: {adapter: star-trek-minilm, title: Star Trek}}
allow: [star_trek]
refuse: "I only chart Star Trek space."
rules:
  - {name: long, if: {star_trek: related, text_longer_than: 5000}, do: refuse}
tests:
  - {say: "Who commands the Enterprise-D?", expect: allow}
  - {say: "How do I file my income tax return?", expect: EXPECTED}
"""
Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Runs `guardrail ARGUMENTS` in an empty folder."""

    def run_command(*arguments: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "guardrail.cli", *arguments]
        return subprocess.run(command, input=stdin, capture_output=True, text=True, cwd=tmp_path, timeout=120)

    return run_command


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "guardrail.yaml"
    path.write_text(CONFIG.replace("EXPECTED", "refuse"))
    return path


def test_help_names_every_command(run: Run) -> None:
    """`guardrail --help` lists the commands, each has its own help, and --version answers."""
    text = run("--help").stdout
    for name in ("serve", "demo", "score", "explain", "check", "schema", "compile", "bench"):
        assert name in text
        assert run(name, "--help").returncode == 0
    assert run("--version").stdout.startswith("guardrail 0.")


def test_score_keeps_order_and_keys(run: Run, tmp_path: Path) -> None:
    """JSON lines in and out; context counts; a file and stdin are the same."""
    rows = [
        {"input": "Who is Spock's father?", "id": 1},
        {"input": "How do I descale a kettle?", "id": 2},
        {"input": "and his father?", "context": ["Who is Spock?"], "id": 3},
        {"input": "and his father?", "context": ["Who is the king of Spain?"], "id": 4},
    ]
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (tmp_path / "in.jsonl").write_text(lines)
    result = run("score", "--adapter", "star-trek-minilm", "in.jsonl")
    scored = [json.loads(line) for line in result.stdout.splitlines()]
    assert (result.returncode, [row["id"] for row in scored]) == (0, [1, 2, 3, 4])
    assert [row["predicted"] for row in scored][:2] == ["related", "not_related"]
    assert scored[2]["score"] > scored[3]["score"]
    assert run("score", stdin=lines).stdout == result.stdout


def test_score_reports_bad_lines(run: Run, config: Path) -> None:
    """A bad line is named on stderr, the others are scored, and the exit code is 2."""
    result = run("score", "--config", str(config), stdin='{"input": "warp core"}\nnonsense\n{"input": 1}\n')
    assert (result.returncode, len(result.stdout.splitlines())) == (2, 1)
    assert "-:2: not valid JSON" in result.stderr
    assert "-:3: the key 'input' must be a text" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["score", "--adapter", "nope"], "Bundled: "),
        (["score", "no-such-file.jsonl"], "no-such-file.jsonl"),
        (["score", "--form", "int4"], "--form must be"),
        (["check", "no.yaml"], "cannot be read"),
        (["explain", "no.yaml", "hello"], "cannot be read"),
        (["serve", "no.yaml"], "cannot be read"),
    ],
)
def test_wrong_input(run: Run, arguments: list[str], words: str) -> None:
    """One clear line on stderr, exit code 2, no traceback."""
    result = run(*arguments)
    assert result.returncode == 2
    assert words in result.stderr
    assert "Traceback" not in result.stderr


def test_check_runs_the_tests(run: Run, config: Path) -> None:
    """Passed tests: 0; a failed one: 1; mistakes: 2, all at once."""
    assert run("check", str(config)).returncode == 0
    config.write_text(CONFIG.replace("EXPECTED", "allow"))
    failed = run("check", str(config), "--json")
    assert (failed.returncode, json.loads(failed.stdout)["failed"]) == (1, 1)
    config.write_text("topics: {star_trek: {adapter: nope}}\nallow: [startrek]\n")
    wrong = run("check", str(config))
    assert (wrong.returncode, wrong.stderr.count("guardrail.yaml:")) == (2, 2)


def test_explain(run: Run, config: Path) -> None:
    """The story names score, thresholds, rules, decision and time, as text and as JSON."""
    told = run("explain", str(config), "How do I file my income tax return?").stdout
    for word in ("score", "related from", "rule       long: does not hold", "decision   refuse", "I only chart", "ms"):
        assert word in told
    story = json.loads(run("explain", str(config), "and his father?", "--after", "Who is Spock?", "--json").stdout)
    assert (story["context"], set(story["topics"])) == (["Who is Spock?"], {"star_trek"})


def test_schema(run: Run) -> None:
    """The JSON Schema is valid JSON and knows the keys."""
    assert "topics" in json.loads(run("schema").stdout)["properties"]
