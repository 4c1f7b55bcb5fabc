"""The decision log: complete, without words unless asked for, tamper-evident, and never in the way of a request."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from guardrail import Action, Guard, Policy
from guardrail.audit import DecisionLog, LogError, files_of, read_log, verify
from guardrail.config import Config
from guardrail.errors import ScoringError
from guardrail.policy import Mode, Policies, Request
from guardrail.testing import FixedScorer


def rows(path: Path) -> list[dict[str, Any]]:
    return [row for _, row in read_log(path) if row is not None]


def logged(path: Path, *texts: str, **options: Any) -> DecisionLog:
    """A log with a decision on each text, closed."""
    log = DecisionLog(path, **options)
    scorer = FixedScorer(star_trek=lambda turn: 0.99 if "Spock" in turn.text else 0.01)
    with Guard(scorer, Policy(allow=("star_trek",), version="v1"), log=log) as guard:
        for text in texts:
            guard.check(text)
    return log


def test_each_decision_is_a_line(tmp_path: Path) -> None:
    """In order, with all that a policy looked at and what came of it; without a word of the text."""
    path = tmp_path / "log.jsonl"
    logged(path, "Spock is a secret", "bread and butter")
    first, second = rows(path)
    assert [row["action"] for row in (first, second)] == ["allow", "refuse"]
    assert first["scores"]["star_trek"] == {
        **{"low": 0.99, "high": 0.99, "band": "related", "limits": [0.3, 0.7], "adapter": "fixed@0"},
    }
    assert (first["length"], first["rule"], first["policy"]) == (17, "allow: star_trek", "default@v1")
    assert first["request"] == {"role": "user"}
    assert second["prev"] == first["hash"]
    assert "secret" not in path.read_text()
    assert "butter" not in path.read_text()


def test_text_on_request(tmp_path: Path) -> None:
    """`text: true` logs what was said and its context."""
    path = tmp_path / "log.jsonl"
    with Guard(FixedScorer(star_trek=0.9), Policy(allow=("star_trek",)), log=DecisionLog(path, text=True)) as guard:
        guard.check("his father \ud800", context=["Spock"])
    assert (rows(path)[0]["text"], rows(path)[0]["earlier"]) == ("his father \ud800", ["Spock"])


def test_the_same_text_is_known_again_by_a_key(tmp_path: Path) -> None:
    """With a key of the operator over restarts, without one within a start only; never by its plain hash."""
    for name, key in (("keyed", b"k"), ("plain", None)):
        for _ in range(2):
            logged(tmp_path / name, "Spock", "Spock", key=key)
    keyed = {row["text_hmac"] for row in rows(tmp_path / "keyed")}
    plain = [row["text_hmac"] for row in rows(tmp_path / "plain")]
    assert len(keyed) == 1
    assert plain[0] == plain[1] != plain[2] == plain[3]


def test_faults_and_shadows_are_logged(tmp_path: Path) -> None:
    """A turn that could not be scored, and what a shadow policy beside the enforced one would have done."""
    path = tmp_path / "log.jsonl"
    log = DecisionLog(path)
    beside = Policies(Policy(allow=("star_trek",)), shadow=Policy(deny=("star_trek",), name="new", version="2"))
    with Guard(FixedScorer(star_trek=0.9), beside, log=log) as guard:
        guard.check("Spock", request=Request(model="m", api_key="staff", headers={"x-tenant": "a"}))
        failing = Guard(FixedScorer(star_trek=ScoringError("no device")), Policy(allow=("star_trek",)), log=log)
        failing.check("Spock")
    first, second = rows(path)
    assert first["beside"] == {"policy": "new@2", "action": "refuse", "rule": "deny: star_trek"}
    assert first["request"] == {"role": "user", "model": "m", "api_key": "staff", "headers": {"x-tenant": "a"}}
    assert (second["error"], second["action"]) == ("ScoringError: no device", "refuse")
    assert "scores" not in second


def tampered(path: Path, change: Callable[[list[str]], list[str]]) -> list[tuple[int, str]]:
    """Faults after a change to the lines."""
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(change(lines)))
    return [(number, fault) for _, number, fault in verify([path])]


@pytest.mark.parametrize(
    ("change", "faults"),
    [
        (lambda lines: lines, []),
        (lambda lines: [lines[0].replace('"allow"', '"refuse"'), *lines[1:]], [(1, "changed")]),
        (lambda lines: [*lines[:1], *lines[2:]], [(2, "the line before it is missing or was moved")]),
        (lambda lines: [lines[0], lines[2], lines[1], lines[3]], [(2, "missing"), (3, "missing"), (4, "missing")]),
        (lambda lines: [lines[0], "{}\n", *lines[1:]], [(2, "not a log line")]),
        (lambda lines: [*lines[:3], lines[3][:40]], [(4, "not a log line")]),
        (lambda lines: lines[1:], []),
    ],
    ids=["untouched", "changed", "missing", "moved", "foreign line", "half a line", "older lines deleted"],
)
def test_verify(tmp_path: Path, change: Callable[[list[str]], list[str]], faults: list[tuple[int, str]]) -> None:
    """A changed, missing, moved or foreign line is found at its place."""
    path = tmp_path / "log.jsonl"
    logged(path, "Spock", "Spock 2", "Spock 3", "Spock 4")
    found = tampered(path, change)
    assert [number for number, _ in found] == [number for number, _ in faults]
    assert all(expected in fault for (_, fault), (_, expected) in zip(found, faults, strict=True))


def test_the_chain_goes_on_over_restarts_and_rotation(tmp_path: Path) -> None:
    """Rotated files and a new start continue the chain; only `keep` old files stay."""
    path = tmp_path / "log.jsonl"
    for _ in range(4):
        logged(path, "Spock", max_bytes=1, keep=2)
    assert [file.name for file in files_of(path)] == ["log.jsonl.2", "log.jsonl.1", "log.jsonl"]
    assert all(len(rows(file)) == 1 for file in files_of(path))
    assert list(verify(files_of(path))) == []
    assert rows(path)[0]["prev"] == rows(tmp_path / "log.jsonl.1")[0]["hash"]


def test_an_unwritable_path_is_told_at_the_start(tmp_path: Path) -> None:
    """Not at the first request."""
    with pytest.raises(LogError, match="make the folder"):
        DecisionLog(tmp_path / "no" / "log.jsonl")
    (tmp_path / "other").write_text("no log\n")
    with pytest.raises(LogError, match="audit verify"):
        DecisionLog(tmp_path / "other")


@pytest.mark.parametrize(
    ("must_log", "mode", "action"),
    [
        (False, Mode.ENFORCE, Action.ALLOW),
        (True, Mode.ENFORCE, Action.REFUSE),
        (True, Mode.SHADOW, Action.ALLOW),
    ],
)
def test_a_path_that_vanishes(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, must_log: bool, mode: Mode, action: Action
) -> None:
    """It is reported once and handled as the config says; when the folder is back, so is the log."""
    folder = tmp_path / "logs"
    folder.mkdir()
    path = folder / "log.jsonl"
    log = DecisionLog(path)
    guard = Guard(FixedScorer(star_trek=0.9), Policy(allow=("star_trek",), mode=mode), log=log, must_log=must_log)
    assert guard.check("Spock").action is Action.ALLOW
    log.flush()
    folder.rename(tmp_path / "gone")
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            guard.check("Spock")
            log.flush()
    assert [record.levelname for record in caplog.records] == ["ERROR"]
    assert guard.check("Spock").action is action
    log.flush()
    assert (log.failed, log.dropped) == (True, 4)
    (tmp_path / "gone").rename(folder)
    guard.check("Spock")
    log.flush()
    assert not log.failed
    assert "4 decisions are missing" in caplog.text
    assert guard.check("Spock").action is Action.ALLOW
    guard.close()
    assert len(rows(path)) == 3
    assert list(verify([path])) == []


def test_a_full_disk(tmp_path: Path) -> None:
    """What does not fit is taken back whole, and told."""
    if not os.path.exists("/dev/full"):
        pytest.skip("this system has no /dev/full")
    path = tmp_path / "log.jsonl"
    logged(path, "Spock")
    log = DecisionLog(path)
    path.rename(tmp_path / "kept")
    path.symlink_to("/dev/full")
    guard = Guard(FixedScorer(star_trek=0.9), Policy(allow=("star_trek",)), log=log)
    guard.check("Spock")
    log.flush()
    assert "No space left" in log.fault
    guard.close()


def test_two_writers_are_found(tmp_path: Path) -> None:
    """Lines of two processes would break the chain: the second is told so, and the chain stays whole."""
    path = tmp_path / "log.jsonl"
    one, other = DecisionLog(path), DecisionLog(path)
    first, second = (Guard(FixedScorer(star_trek=0.9), Policy(allow=("star_trek",)), log=log) for log in (one, other))
    first.check("Spock")
    one.flush()
    second.check("Spock")
    other.flush()
    assert "another program writes to it" in other.fault
    first.close()
    second.close()
    assert list(verify([path])) == []


def test_config(tmp_path: Path) -> None:
    """`log:` has bounds, and a policy's version does not depend on it."""
    base: dict[str, Any] = {"topics": {"star_trek": {"adapter": "x"}}, "allow": ["star_trek"]}
    plain = Config.model_validate(base)
    config = Config.model_validate({**base, "log": {"path": "log.jsonl", "on_full": "refuse"}})
    assert plain.policy().version == config.policy().version
    guard = Guard.from_config(config, FixedScorer(star_trek=0.9), log=DecisionLog(tmp_path / "log.jsonl"))
    guard.check("Spock")
    guard.close()
    assert json.loads((tmp_path / "log.jsonl").read_text())["policy"].startswith("default@")
