"""A changed file is taken up whole or not at all; nothing under way is dropped or mixed, and nothing is left behind."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import shutil
import signal
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest

from guardrail import Action
from guardrail.adapter import Adapter, Base, Manifest, save_manifest
from guardrail.audit import files_of, read_log, verify
from guardrail.chat import Turn
from guardrail.config import Config
from guardrail.errors import ClosedError, ConfigError
from guardrail.reload import ReloadingGuard
from guardrail.scoring import Score, Scores
from guardrail.testing import FixedScorer

TEXT = "topics: {trek: {adapter: ./trek}}\nallow: [trek]\n"


class Engines:
    """Scorers as they are opened: each says its number in the third decimal, and knows whether it was closed."""

    def __init__(self) -> None:
        self.opened: list[Numbered] = []

    def open(self, adapters: dict[str, Adapter], **options: Any) -> Numbered:
        self.opened.append(Numbered(len(self.opened), next(iter(adapters.values())).manifest.name))
        return self.opened[-1]

    @property
    def living(self) -> list[int]:
        return [engine.number for engine in self.opened if not engine.closed]


class Numbered(FixedScorer):
    def __init__(self, number: int, name: str) -> None:
        super().__init__(trek=0.9)
        self.number, self.name, self.closed = number, name, 0
        self.held: list[Future[Scores]] | None = None

    def submit(self, turn: Turn) -> Future[Scores]:
        assert not self.closed
        future: Future[Scores] = Future()
        if self.held is not None:
            self.held.append(future)
            return future
        future.set_result({"trek": Score(0.9, 0.9 + self.number / 100_000)})
        return future

    def close(self) -> None:
        self.closed += 1


@pytest.fixture
def engines(monkeypatch: pytest.MonkeyPatch) -> Engines:
    found = Engines()
    monkeypatch.setattr("guardrail.engine.engine.open_engine", found.open)
    return found


@pytest.fixture
def path(tmp_path: Path, engines: Engines) -> Path:
    adapter(tmp_path, "trek")
    (tmp_path / "guardrail.yaml").write_text(TEXT, encoding="utf-8")
    return tmp_path / "guardrail.yaml"


@pytest.fixture
def guard(path: Path) -> Iterator[ReloadingGuard]:
    with ReloadingGuard(path) as found:
        yield found


def adapter(folder: Path, name: str) -> None:
    (folder / name).mkdir(exist_ok=True)
    save_manifest(folder / name, Manifest(name=name, topic="trek", base=Base(id="nowhere")))


def until(condition: Callable[[], object]) -> None:
    end = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.005)


def test_a_new_policy(path: Path, guard: ReloadingGuard, engines: Engines) -> None:
    """It is in force after the reload; a scorer whose adapters did not change is kept."""
    assert guard.check("x").action is Action.ALLOW
    path.write_text(TEXT.replace("allow", "deny"), encoding="utf-8")
    done = guard.reload()
    assert (done.accepted, done.version, guard.check("x").action) == (True, guard.policy.version, Action.REFUSE)
    assert engines.living == [0]


def test_a_new_adapter(path: Path, guard: ReloadingGuard, engines: Engines) -> None:
    """Its scorer is opened, and the old one closed, once."""
    adapter(path.parent, "other")
    path.write_text(TEXT.replace("./trek", "./other"), encoding="utf-8")
    assert guard.reload().accepted
    assert (engines.living, engines.opened[0].closed) == ([1], 1)
    guard.close()
    guard.close()
    assert [engine.closed for engine in engines.opened] == [1, 1]
    with pytest.raises(ClosedError):
        guard.check("x")
    assert not guard.reload().accepted


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("topics: {trek: {adapter: ./trek}}\nalow: [trek]\n", "did you mean 'allow'"),
        (TEXT + "tests: [{say: x, expect: refuse}]\n", "expected refuse, got allow"),
        (TEXT.replace("./trek", "./gone"), "no adapter './gone'"),
        (TEXT + "log: {path: no/log.jsonl}\n", "make the folder"),
        ("{", "not valid YAML"),
    ],
)
def test_a_wrong_file(path: Path, guard: ReloadingGuard, engines: Engines, caplog: Any, text: str, reason: str) -> None:
    """It is refused with the reason, the old policy stays, and nothing that was opened for it stays open."""
    version = guard.policy.version
    path.write_text(text, encoding="utf-8")
    with caplog.at_level(logging.ERROR, "guardrail.reload"):
        done = guard.reload()
    assert not done.accepted
    assert reason in done.reason
    assert reason in caplog.text
    assert (guard.policy.version, guard.check("x").action, engines.living) == (version, Action.ALLOW, [0])
    assert (guard.counts.accepted, guard.counts.refused, guard.last) == (0, 1, done)


def test_a_wrong_file_at_the_start(path: Path, engines: Engines) -> None:
    """There is no old policy to keep."""
    path.write_text(TEXT + "tests: [{say: x, expect: refuse}]\n", encoding="utf-8")
    with pytest.raises(ConfigError, match="expected refuse"):
        ReloadingGuard(path)
    assert engines.living == []


def test_who_uses_the_guard_may_object(path: Path, engines: Engines) -> None:
    """`accept` sees each new config before it is taken; a proxy looks at its upstreams there."""
    seen: list[Config] = []

    def accept(config: Config) -> None:
        seen.append(config)
        if config.queue_limit == 7:
            raise ConfigError([])

    with ReloadingGuard(path, accept=accept) as guard:
        path.write_text(TEXT + "queue_limit: 7\n", encoding="utf-8")
        assert not guard.reload().accepted
        assert [config.queue_limit for config in seen] == [256, 7]
        assert engines.living == [0]


def test_an_adapter_removed_while_running(path: Path, guard: ReloadingGuard) -> None:
    """What is loaded stays in use; a reload is refused."""
    shutil.rmtree(path.parent / "trek")
    assert guard.check("x").action is Action.ALLOW
    assert "no adapter './trek'" in guard.reload().reason
    assert guard.check("x").action is Action.ALLOW


async def test_what_is_under_way_ends_on_the_old_one(path: Path, guard: ReloadingGuard, engines: Engines) -> None:
    """The old scorer is closed when its last judgement ends, not before."""
    held = engines.opened[0].held = []
    waiting = [asyncio.ensure_future(guard.acheck(f"{number}")) for number in range(3)]
    await asyncio.sleep(0.01)
    adapter(path.parent, "other")
    path.write_text(TEXT.replace("./trek", "./other").replace("allow", "deny"), encoding="utf-8")  # noqa: ASYNC240
    assert (await asyncio.to_thread(guard.reload)).accepted
    assert (await guard.acheck("new")).action is Action.REFUSE
    assert engines.living == [0, 1]
    waiting[0].cancel()
    for future in held[1:]:
        future.set_result({"trek": Score(0.9, 0.9)})
    decisions = await asyncio.gather(*waiting[1:])
    assert [decision.action for decision in decisions] == [Action.ALLOW, Action.ALLOW]
    assert engines.living == [1]


def test_the_log_goes_on(path: Path, engines: Engines) -> None:
    """One chain over reloads; a log at another path is opened and the old one closed."""
    path.write_text(TEXT + "log: {path: log.jsonl}\n", encoding="utf-8")
    with ReloadingGuard(path) as guard:
        guard.check("one")
        path.write_text(TEXT + "unsure: refuse\nlog: {path: log.jsonl, text: true}\n", encoding="utf-8")
        assert guard.reload().accepted
        guard.check("two")
        path.write_text(TEXT + "log: {path: other.jsonl}\n", encoding="utf-8")
        assert guard.reload().accepted
        guard.check("three")
    first, second = path.parent / "log.jsonl", path.parent / "other.jsonl"
    assert [row.get("text") for _, row in read_log(first) if row] == [None, "two"]
    assert len(list(read_log(second))) == 1
    assert [*verify(files_of(first)), *verify(files_of(second))] == []


def test_what_was_scored_is_remembered(path: Path, guard: ReloadingGuard, engines: Engines) -> None:
    """With the same scorer, earlier turns are not scored again after a reload."""
    messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "x"}, {"role": "user", "content": "b"}]
    guard.check(messages)
    path.write_text(TEXT + "unsure: refuse\n", encoding="utf-8")
    assert guard.reload().accepted
    engines.opened[0].held = []  # from here on nothing is answered
    with guard._lease() as setup:
        assert setup.memory.recall("", Turn("a")) is not None


def test_a_hundred_reloads_under_load(path: Path, guard: ReloadingGuard, engines: Engines) -> None:
    """Nothing is dropped or mixed: each decision has scorer and policy of one config; memory stays flat."""
    for name in ("even", "odd"):
        adapter(path.parent, name)
    texts = {
        name: TEXT.replace("./trek", f"./{name}").replace("allow", keyword)
        for name, keyword in (("even", "allow"), ("odd", "deny"))
    }
    path.write_text(texts["even"], encoding="utf-8")
    assert guard.reload().accepted
    stop, wrong, done = threading.Event(), [], [0] * 3

    def work(slot: int) -> None:
        while not stop.is_set():
            judgement = guard.judge("x")
            number = round((judgement.seen.scores["trek"].high - 0.9) * 100_000) if judgement.seen else -1
            expected = Action.ALLOW if engines.opened[number].name == "even" else Action.REFUSE
            if judgement.decision.error is not None or judgement.decision.action is not expected:
                wrong.append(judgement)
            done[slot] += 1

    def asynchronous() -> None:
        async def loop() -> None:
            while not stop.is_set():
                decisions = await asyncio.gather(*(guard.acheck("y") for _ in range(5)))
                wrong.extend(decision for decision in decisions if decision.error is not None)
                done[2] += 1

        asyncio.run(loop())

    threads = [*(threading.Thread(target=work, args=(slot,)) for slot in range(2)), threading.Thread(target=asynchronous)]
    for thread in threads:
        thread.start()
    tracemalloc.start()
    try:
        sizes = []
        for number in range(100):
            path.write_text(texts["odd" if number % 2 == 0 else "even"], encoding="utf-8")
            assert guard.reload().accepted
            if number in (19, 99):
                gc.collect()
                sizes.append(tracemalloc.get_traced_memory()[0])
    finally:
        tracemalloc.stop()
        stop.set()
        for thread in threads:
            thread.join(20)
    assert wrong == []
    assert all(done)
    until(lambda: len(engines.living) == 1)
    assert all(engine.closed <= 1 for engine in engines.opened)
    assert sizes[1] < sizes[0] * 1.05 + 200_000


def test_watching_the_file(path: Path, guard: ReloadingGuard) -> None:
    """A change is taken up by itself, also when an editor puts a new file in its place; a wrong one is not."""
    guard.watch(0.02)
    path.write_text(TEXT.replace("allow", "deny"), encoding="utf-8")
    until(lambda: guard.check("x").action is Action.REFUSE)
    path.with_suffix(".new").write_text(TEXT, encoding="utf-8")
    path.with_suffix(".new").replace(path)
    until(lambda: guard.check("x").action is Action.ALLOW)
    path.write_text("nonsense: 1\n", encoding="utf-8")
    until(lambda: guard.counts.refused == 1)
    path.unlink()
    until(lambda: guard.counts.refused == 2)
    assert guard.check("x").action is Action.ALLOW


def test_sighup(path: Path, engines: Engines) -> None:
    """The signal reloads, whether or not the file changed."""
    before = signal.getsignal(signal.SIGHUP)
    try:
        with ReloadingGuard(path) as guard:
            guard.watch(0.02, on_sighup=True)
            os.kill(os.getpid(), signal.SIGHUP)
            until(lambda: guard.counts.accepted == 1)
    finally:
        signal.signal(signal.SIGHUP, before)
