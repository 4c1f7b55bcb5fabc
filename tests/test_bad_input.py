"""Whatever comes in, there is a defined decision or a clear error: the rows of docs/bad-input.md, one test each."""

from __future__ import annotations

import asyncio
import logging
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

from guardrail import Action, Decision, Guard, Policy
from guardrail.adapter import Base, Manifest, save_manifest
from guardrail.audit import DecisionLog, read_log, verify
from guardrail.chat import Turn
from guardrail.errors import ScoringError, UnreadableError
from guardrail.reload import ReloadingGuard
from guardrail.testing import FixedScorer

PAGE = Path(__file__).parent.parent / "docs" / "bad-input.md"
LIMIT = 1_000_000


def by_words(turn: Turn) -> float | Exception:
    """Related is what speaks of Spock; too long a text is turned away, as the engine does."""
    if len(turn.text) > LIMIT:
        return UnreadableError("the text is too long to be judged")
    return 0.99 if "Spock" in turn.text else 0.01


@pytest.fixture
def guard(tmp_path: Path) -> Guard:
    log = DecisionLog(tmp_path / "log.jsonl", text=True)
    return Guard(FixedScorer(trek=by_words), Policy(allow=("trek",)), log=log)


def decided(guard: Guard, said: Any) -> Decision:
    """The decision, the same in a thread and in an event loop, and logged in a chain that holds."""
    one, other = guard.check(said), asyncio.run(guard.acheck(said))
    assert (one.action, one.rule, one.error) == (other.action, other.rule, other.error)
    log = guard._setup.log
    assert log is not None
    log.flush()
    assert [row["action"] for _, row in read_log(log.path) if row][-2:] == [one.action.value] * 2
    assert list(verify([log.path])) == []
    return one


def user(content: Any) -> list[dict[str, Any]]:
    return [{"role": "user", "content": content}]


def test_empty_text(guard: Guard) -> None:
    assert decided(guard, "").rule == "allow"
    assert decided(guard, []).action is Action.REFUSE


def test_only_white_space(guard: Guard) -> None:
    assert decided(guard, user(" \n\t\u3000\u200b ")).rule == "allow"


def test_only_emoji(guard: Guard) -> None:
    assert decided(guard, user("🖖🏽👩‍🚀🏳️‍🌈")).rule == "allow"


def test_control_characters(guard: Guard) -> None:
    assert decided(guard, user("Spock\x00\x1b[31m\x7f\ud800\ufeff\U0010ffff")).action is Action.ALLOW


def test_bytes(guard: Guard) -> None:
    for said in (b"Spock", bytearray(b"Spock"), user(b"Spock"), 3, None, {"role": "user"}):
        with pytest.raises(UnreadableError):
            guard.check(said)  # type: ignore[arg-type]


def test_two_megabytes(guard: Guard) -> None:
    with pytest.raises(UnreadableError, match="too long"):
        guard.check(user("Spock " * 350_000))
    assert decided(guard, user("Spock " * 100_000)).action is Action.ALLOW


def test_ten_thousand_messages(guard: Guard) -> None:
    pair = [*user("Spock"), {"role": "assistant", "content": "yes"}]
    assert decided(guard, [*pair * 5000, *user("bread")]).rule == "allow"
    assert decided(guard, user("Spock") * 10_000).action is Action.ALLOW


def test_unknown_role(guard: Guard) -> None:
    with pytest.raises(UnreadableError, match="unknown role 'wizard'") as caught:
        guard.check([*user("Spock"), {"role": "wizard", "content": "x"}])
    assert caught.value.param == "messages[1].role"


def test_message_without_content(guard: Guard) -> None:
    assert decided(guard, [{"role": "user"}]).rule == "allow"
    assert decided(guard, [{"role": "user"}, {"role": "assistant", "content": None}, *user("Spock")]).action is Action.ALLOW


def test_part_without_text(guard: Guard) -> None:
    for part in ({"type": "text"}, {"type": "text", "text": None}, {"type": "image_url", "image_url": {"url": "x"}}, {}, "Spock"):
        with pytest.raises(UnreadableError) as caught:
            guard.check(user([{"type": "text", "text": "Spock"}, part]))
        assert caught.value.param == "messages[0].content[1]"


def test_scorer_that_fails(guard: Guard) -> None:
    failing = Guard(FixedScorer(trek=ScoringError("no device")), Policy(allow=("trek",)))
    assert (failing.check("Spock").action, failing.check("Spock").error) == (Action.REFUSE, "ScoringError: no device")


def test_adapter_removed_while_running(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "trek").mkdir()
    save_manifest(tmp_path / "trek", Manifest(name="trek", topic="trek", base=Base(id="nowhere")))
    (tmp_path / "guardrail.yaml").write_text("topics: {trek: {adapter: ./trek}}\nallow: [trek]\n", encoding="utf-8")
    monkeypatch.setattr("guardrail.engine.engine.open_engine", lambda *args, **options: FixedScorer(trek=by_words))
    with ReloadingGuard(tmp_path / "guardrail.yaml") as guard:
        shutil.rmtree(tmp_path / "trek")
        done = guard.reload()
        assert (done.accepted, guard.check("Spock").action) == (False, Action.ALLOW)
        assert "no adapter './trek'" in done.reason


def test_log_path_that_vanishes(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for must_log, action in ((False, Action.ALLOW), (True, Action.REFUSE)):
        folder = tmp_path / f"logs-{must_log}"
        folder.mkdir()
        log = DecisionLog(folder / "log.jsonl")
        guard = Guard(FixedScorer(trek=by_words), Policy(allow=("trek",)), log=log, must_log=must_log)
        shutil.rmtree(folder)
        with caplog.at_level(logging.ERROR, "guardrail.audit"):
            guard.check("Spock")
            log.flush()
        assert "cannot be written" in caplog.text
        assert guard.check("Spock").action is action
        guard.close()


def test_the_page_is_current() -> None:
    """Each row of the table names a test of this file, and each test has a row."""
    rows = set(re.findall(r"`(test_\w+)`", PAGE.read_text(encoding="utf-8")))
    here = {name for name in dir(sys.modules[__name__]) if name.startswith("test_")}
    assert rows == here - {"test_the_page_is_current"}
