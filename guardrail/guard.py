"""A guard is a scorer and a policy: `check` in a thread, `acheck` in an event loop, the same steps in both.

The steps are written once, as a generator that yields the future it waits for; two small drivers wait for it in their own way.
(`engine` stands below this module, other than DESIGN.md's listing has it: `Guard.from_file` opens one.)
"""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import Generator, Mapping, Sequence
from concurrent import futures
from concurrent.futures import Future
from dataclasses import dataclass, replace
from pathlib import Path
from time import perf_counter
from types import MappingProxyType, TracebackType
from typing import TYPE_CHECKING

from guardrail.chat import Turn, read_messages, turn_of
from guardrail.errors import ConfigError, OverloadedError, Problem, ScoringError, UnreadableError
from guardrail.policy import Decision, Observation, Policy
from guardrail.scoring import Scorer, Scores, Thresholds, Topic

if TYPE_CHECKING:
    from guardrail.config import Config, TestConfig

Said = str | Turn | Sequence[Mapping[str, object]]
"""What can be judged: a text, OpenAI messages, or a turn."""
_Judging = Generator["Future[Scores]", Scores, Decision]


class Refused(Exception):
    """A guarded call was refused; `decision` says why and `reply` is the text for the user."""

    def __init__(self, decision: Decision) -> None:
        super().__init__(f"refused: {decision.reason}")
        self.decision = decision
        self.reply = decision.reply


@dataclass(frozen=True, slots=True)
class Explanation:
    """One decision and everything that led to it; `tried` names each rule that was looked at and whether it held."""

    turn: Turn
    seen: Observation
    tried: tuple[tuple[str, bool], ...]
    decision: Decision


@dataclass(frozen=True, slots=True)
class TestResult:
    """What came of one of the config's `tests`."""

    __test__ = False  # not for pytest

    test: TestConfig
    decision: Decision
    passed: bool

    def __str__(self) -> str:
        """The sentence, what was expected and what came, with the scores."""
        scores = ", ".join(f"{topic} {score:.3f}" for topic, score in self.decision.scores.items())
        action = (self.decision.shadow or self.decision.action).value
        return f"{self.test.say!r}: expected {self.test.expect.value}, got {action} ({self.decision.reason}; {scores})"


class Guard:
    """Judges turns by a policy; safe to use from many threads and event loops.

    `thresholds` replace those of the adapters, by topic; `timeout` is the longest wait for a score, in seconds.
    """

    def __init__(
        self,
        scorer: Scorer,
        policy: Policy,
        *,
        context_turns: int = 2,
        timeout: float = 10.0,
        thresholds: Mapping[str, Thresholds] = MappingProxyType({}),
    ) -> None:
        self.scorer = scorer
        self.policy = policy
        self.context_turns = context_turns
        self.timeout = timeout
        self.topics: Mapping[str, Topic] = {
            name: replace(topic, thresholds=thresholds.get(name, topic.thresholds)) for name, topic in scorer.topics.items()
        }
        missing = sorted(set(policy.topics_used()) - set(self.topics))
        if missing:
            raise ValueError(f"the policy names topics that the scorer does not know: {', '.join(missing)}")

    @classmethod
    def from_file(cls, path: str | Path, *, run_tests: bool = True) -> Guard:
        """The guard that a config file describes; its `tests` are run first.

        Raises `ConfigError` for a wrong file or a failed test, `AdapterError` for an adapter that does not fit.
        """
        from guardrail.config import load_config
        from guardrail.engine.engine import open_engine

        config, adapters = load_config(path)
        near = Path(path).resolve().parent
        scorer = open_engine(adapters, device=config.device, near=near, queue_limit=config.queue_limit)
        guard = cls.from_config(config, scorer)
        results = [guard.run_test(test) for test in config.tests] if run_tests else []
        failed = [Problem(str(path), None, f"tests[{i}]", str(result)) for i, result in enumerate(results) if not result.passed]
        if failed:
            guard.close()
            raise ConfigError(failed)
        return guard

    @classmethod
    def from_config(cls, config: Config, scorer: Scorer) -> Guard:
        """A guard by a config that was loaded, on a scorer that was opened."""
        return cls(
            scorer,
            config.policy(),
            context_turns=config.context.turns,
            timeout=config.score_timeout,
            thresholds=config.thresholds(),
        )

    def turn(self, said: Said, context: Sequence[str] = ()) -> Turn:
        """The turn to judge; `context` is earlier user turns, oldest first, for a plain text.

        Raises `UnreadableError` when there is something that cannot be judged as text.
        """
        if isinstance(said, Turn):
            return said
        if isinstance(said, str):
            return Turn(said, tuple(context)[-self.context_turns :] if self.context_turns else ())
        if isinstance(said, Sequence) and not isinstance(said, bytes):
            return turn_of(read_messages(said), self.context_turns)
        raise UnreadableError(f"cannot judge {type(said).__name__}: give a text or a list of messages")

    def check(self, said: Said, *, context: Sequence[str] = ()) -> Decision:
        """Judge what the user says; blocks until the score is there. In an event loop use `acheck`."""
        return self._wait(self._judging(self.turn(said, context)))

    async def acheck(self, said: Said, *, context: Sequence[str] = ()) -> Decision:
        """As `check`, without blocking the event loop; when it is cancelled, so is the scoring."""
        return await self._await(self._judging(self.turn(said, context)))

    def explain(self, said: Said, *, context: Sequence[str] = ()) -> Explanation:
        """The whole story of one decision; raises `ScoringError` where `check` would fall back on `on_error`."""
        turn = self.turn(said, context)
        started = perf_counter()
        scores = self.scorer.submit(turn).result(self.timeout)
        seen = self._observation(turn, scores)
        decision = _timed(self.policy.decide(seen), started)
        return Explanation(turn, seen, tuple(self.policy.tried(seen)), decision)

    def run_test(self, test: TestConfig) -> TestResult:
        """Judge the sentence of a policy test; in shadow mode by what an enforcing policy would do."""
        decision = self.check(test.say, context=test.after)
        return TestResult(test, decision, (decision.shadow or decision.action) is test.expect)

    def close(self) -> None:
        """Stop the scorer's workers."""
        self.scorer.close()

    def __enter__(self) -> Guard:
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def _judging(self, turn: Turn) -> _Judging:
        started = perf_counter()
        try:
            scores = yield self.scorer.submit(turn)
        except UnreadableError:
            raise
        except Exception as exc:  # whatever broke: the policy's on_error decides, so that no fault lets a turn through
            retry_after = exc.retry_after if isinstance(exc, OverloadedError) else None
            decision = self.policy.decide_unscored(f"{type(exc).__name__}: {exc}", retry_after, _seed(turn))
        else:
            decision = self.policy.decide(self._observation(turn, scores))
        return _timed(decision, started)

    def _observation(self, turn: Turn, scores: Scores) -> Observation:
        return Observation(scores, self.topics, len(turn.text), _seed(turn))

    def _wait(self, judging: _Judging) -> Decision:
        try:
            waiting = next(judging)
        except StopIteration as done:
            return _decision(done)
        outcome: Scores | Exception
        try:
            outcome = waiting.result(self.timeout)
        except futures.TimeoutError:
            waiting.cancel()
            outcome = self._late()
        except futures.CancelledError:
            outcome = ScoringError("the scoring was cancelled")
        except Exception as exc:
            outcome = exc
        return _resume(judging, outcome)

    async def _await(self, judging: _Judging) -> Decision:
        try:
            waiting = next(judging)
        except StopIteration as done:
            return _decision(done)
        outcome: Scores | Exception
        try:
            outcome = await asyncio.wait_for(asyncio.wrap_future(waiting), self.timeout)
        except (asyncio.TimeoutError, futures.TimeoutError):
            outcome = self._late()
        except Exception as exc:
            outcome = exc
        return _resume(judging, outcome)

    def _late(self) -> ScoringError:
        return ScoringError(f"no score within {self.timeout:g} s")


def _seed(turn: Turn) -> int:
    """The same turn gets the same of several replies, whoever asks and whenever."""
    return zlib.crc32(turn.text.encode("utf-8", "replace"))


def _timed(decision: Decision, started: float) -> Decision:
    return replace(decision, timings=MappingProxyType({"guard_ms": (perf_counter() - started) * 1000}))


def _resume(judging: _Judging, outcome: Scores | Exception) -> Decision:
    try:
        if isinstance(outcome, Exception):
            judging.throw(outcome)
        else:
            judging.send(outcome)
    except StopIteration as done:
        return _decision(done)
    raise AssertionError("unreachable: a judging waits once")


def _decision(done: StopIteration) -> Decision:
    decision: Decision = done.value
    return decision
