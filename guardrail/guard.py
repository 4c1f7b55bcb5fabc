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
from dataclasses import replace
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
        if run_tests and (failures := guard.failed_tests(config.tests)):
            guard.close()
            raise ConfigError([Problem(str(path), None, f"tests[{index}]", reason) for index, reason in failures])
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

    def failed_tests(self, tests: Sequence[TestConfig]) -> list[tuple[int, str]]:
        """Index and reason of each policy test that does not come out as expected."""
        failures = []
        for index, test in enumerate(tests):
            decision = self.check(test.say, context=test.after)
            action = decision.shadow or decision.action
            if action is not test.expect:
                scores = ", ".join(f"{topic} {score:.3f}" for topic, score in decision.scores.items())
                found = f"expected {test.expect.value}, got {action.value} ({decision.reason}; {scores})"
                failures.append((index, f"{test.say!r}: {found}"))
        return failures

    def close(self) -> None:
        """Stop the scorer's workers."""
        self.scorer.close()

    def __enter__(self) -> Guard:
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def _judging(self, turn: Turn) -> _Judging:
        started = perf_counter()
        seed = zlib.crc32(turn.text.encode("utf-8", "replace"))
        try:
            scores = yield self.scorer.submit(turn)
        except UnreadableError:
            raise
        except Exception as exc:  # whatever broke: the policy's on_error decides, so that no fault lets a turn through
            retry_after = exc.retry_after if isinstance(exc, OverloadedError) else None
            decision = self.policy.decide_unscored(f"{type(exc).__name__}: {exc}", retry_after, seed)
        else:
            decision = self.policy.decide(Observation(scores, self.topics, len(turn.text), seed))
        return replace(decision, timings=MappingProxyType({"guard_ms": (perf_counter() - started) * 1000}))

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
