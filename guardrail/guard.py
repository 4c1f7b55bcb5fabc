"""A guard is a scorer and a policy: `check` in a thread, `acheck` in an event loop, the same steps (`judging`) in both.

(`engine` and `audit` stand below this module, other than DESIGN.md's listing has it: `Guard.from_file` opens both.)
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping, Sequence
from concurrent import futures
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import TYPE_CHECKING

from guardrail.audit import DecisionLog
from guardrail.chat import Turn
from guardrail.errors import ConfigError, Problem, ScoringError
from guardrail.history import Memory
from guardrail.judging import Conversation, Judgement, Said, Setup, Waits, judging, read
from guardrail.policy import Decision, Observation, Policies, Policy, Request
from guardrail.scoring import Explaining, Part, Scorer, Scores, Thresholds, Topic

if TYPE_CHECKING:
    from typing_extensions import Self

    from guardrail.adapter import Adapter
    from guardrail.config import Config, TestConfig

__all__ = ["Conversation", "Explanation", "Guard", "Judgement", "Refused", "Said", "TestResult"]
NOBODY = Request()


class Refused(Exception):
    """A guarded call was refused; `decision` says why and `reply` is the text for the user."""

    def __init__(self, decision: Decision) -> None:
        super().__init__(f"refused: {decision.reason}")
        self.decision = decision
        self.reply = decision.reply


@dataclass(frozen=True, slots=True)
class Explanation:
    """One decision and everything that led to it."""

    turn: Turn
    seen: Observation
    tried: tuple[tuple[str, bool], ...]
    """Each rule that was looked at, and whether it held."""
    decision: Decision
    parts: tuple[Part, ...] = ()
    """Scores of the text's views and windows, where the scorer can tell them."""
    by_hand: frozenset[str] = frozenset()
    """Topics whose thresholds are the config's, not the adapter's."""
    dropped: tuple[int, ...] = ()
    """Messages of refused turns, which were no context and are not forwarded."""


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

    Args:
        scorer: gives the scores; the guard closes it.
        policy: one policy, or several of which each request chooses one.
        context_turns: earlier user turns that are scored along with a turn.
        timeout: the longest wait for the scores of one judgement, in seconds.
        thresholds: replace those of the adapters, by topic.
        drop_refused: whether `judge` names the messages of refused turns, to be left out of what is forwarded.
        stronger: scorers by name, for policies that escalate.
        stronger_thresholds: replace those of their adapters, by scorer and topic.
        log: where decisions are recorded; the guard closes it.
        must_log: refuse while the log cannot be written.
    """

    def __init__(
        self,
        scorer: Scorer,
        policy: Policy | Policies,
        *,
        context_turns: int = 2,
        timeout: float = 10.0,
        thresholds: Mapping[str, Thresholds] = MappingProxyType({}),
        drop_refused: bool = True,
        stronger: Mapping[str, Scorer] = MappingProxyType({}),
        stronger_thresholds: Mapping[str, Mapping[str, Thresholds]] = MappingProxyType({}),
        log: DecisionLog | None = None,
        must_log: bool = False,
    ) -> None:
        policies = policy if isinstance(policy, Policies) else Policies(policy)
        self._setup = Setup(
            scorer=scorer,
            topics=_served(scorer, thresholds),
            policies=policies,
            context_turns=context_turns,
            timeout=timeout,
            drop_refused=drop_refused,
            stronger={name: (other, _served(other, stronger_thresholds.get(name, {}))) for name, other in stronger.items()},
            log=log,
            must_log=must_log,
            memory=Memory(),
        )
        _check_names(self._setup)

    @classmethod
    def from_file(cls, path: str | Path, *, run_tests: bool = True, log: bool = True) -> Guard:
        """The guard that a config file describes; its `tests` are run first, and are not logged. Without `log` nothing is.

        Raises `ConfigError` for a wrong file or a failed test, `AdapterError` for an adapter that does not fit, `LogError` for a
        decision log that cannot be written.
        """
        from guardrail.config import load_config

        config, adapters = load_config(path)
        near = Path(path).resolve().parent
        guard = cls._opened(config, adapters, near, _log_of(config, near) if log else None)
        try:
            guard.run_tests(config, path if run_tests else None)
        except BaseException:
            guard.close()
            raise
        return guard

    @classmethod
    def _opened(cls, config: Config, adapters: Mapping[str, Adapter], near: Path, log: DecisionLog | None) -> Guard:
        """A guard with the engines that a config asks for; what was opened is closed again if one fails."""
        from guardrail.config import load_stronger
        from guardrail.engine.engine import open_engine

        opened: dict[str, Scorer] = {}
        try:
            for name, found in {"": adapters, **load_stronger(config, near)}.items():
                opened[name] = open_engine(found, device=config.device, near=near, queue_limit=config.queue_limit)
            stronger = {name: scorer for name, scorer in opened.items() if name}
            return cls.from_config(config, opened[""], stronger=stronger, log=log)
        except BaseException:
            for scorer in opened.values():
                scorer.close()
            if log is not None:
                log.close()
            raise

    @classmethod
    def from_config(
        cls,
        config: Config,
        scorer: Scorer,
        *,
        stronger: Mapping[str, Scorer] = MappingProxyType({}),
        log: DecisionLog | None = None,
    ) -> Guard:
        """A guard by a config that was loaded, on scorers that were opened; `log` is not opened here either."""
        return cls(
            scorer,
            config.policies_in_force(),
            context_turns=config.context.turns,
            timeout=config.score_timeout,
            thresholds=config.thresholds(),
            drop_refused=config.history == "drop_refused",
            stronger=stronger,
            stronger_thresholds=config.stronger_thresholds(),
            log=log,
            must_log=config.log is not None and config.log.on_full == "refuse",
        )

    @property
    def policies(self) -> Policies:
        """The policies that are in force."""
        return self._setup.policies

    @property
    def policy(self) -> Policy:
        """The default policy."""
        return self._setup.policies.default

    @property
    def scorer(self) -> Scorer:
        """What gives the scores."""
        return self._setup.scorer

    @property
    def topics(self) -> Mapping[str, Topic]:
        """The topics that are scored, with the thresholds that are served."""
        return self._setup.topics

    @contextmanager
    def _lease(self) -> Iterator[Setup]:
        """The setup for one judgement."""
        yield self._setup

    def turn(self, said: Said, context: Sequence[str] = ()) -> Turn:
        """The turn to judge, as it stands: earlier turns of messages are context whatever became of them.

        `context` is earlier user turns, oldest first, for a plain text. Raises `UnreadableError` when there is something that
        cannot be judged as text.
        """
        with self._lease() as setup:
            found = read(said, context, setup.context_turns)
            earlier = found.context or tuple(passed.text for passed in found.rounds)
            return Turn(found.text, earlier[-setup.context_turns :] if setup.context_turns else ())

    def check(self, said: Said, *, context: Sequence[str] = (), request: Request = NOBODY) -> Decision:
        """The decision on what the user says; blocks until the score is there. In an event loop use `acheck`.

        Args:
            said: a text, OpenAI messages, or a turn. Earlier user turns of messages are judged too (see `judge`).
            context: earlier user turns, oldest first, for a plain text; they are taken as they are.
            request: what else the policy may look at.

        Raises:
            UnreadableError: there is something that cannot be judged as text.
        """
        return self.judge(said, context=context, request=request).decision

    async def acheck(self, said: Said, *, context: Sequence[str] = (), request: Request = NOBODY) -> Decision:
        """As `check`, without blocking the event loop; when it is cancelled, so is the scoring."""
        return (await self.ajudge(said, context=context, request=request)).decision

    def judge(self, said: Said, *, context: Sequence[str] = (), request: Request = NOBODY) -> Judgement:
        """As `check`, with the indices of the messages that must not be passed on.

        Of messages, each earlier user turn is judged as well, from memory if it was before: refused ones are no context of what
        comes later, and `Judgement.dropped` names them with their replies. Forward `[m for i, m in enumerate(messages) if i not
        in judgement.dropped]` when the decision allows it. System and developer messages are never dropped.
        """
        with self._lease() as setup:
            return _wait(judging(setup, read(said, context, setup.context_turns), request))

    async def ajudge(self, said: Said, *, context: Sequence[str] = (), request: Request = NOBODY) -> Judgement:
        """As `judge`, without blocking the event loop."""
        with self._lease() as setup:
            return await _await(judging(setup, read(said, context, setup.context_turns), request))

    def explain(self, said: Said, *, context: Sequence[str] = (), request: Request = NOBODY) -> Explanation:
        """The whole story of one decision; raises `ScoringError` where `check` would fall back on `on_error`."""
        with self._lease() as setup:
            unlogged = replace(setup, log=None)
            judgement = _wait(judging(unlogged, read(said, context, setup.context_turns), request))
            if judgement.seen is None:
                raise ScoringError(judgement.decision.error or "not scored")
            parts = tuple(setup.scorer.parts(judgement.turn)) if isinstance(setup.scorer, Explaining) else ()
        tried = tuple(setup.policies.select(judgement.seen.request).tried(judgement.seen))
        by_hand = frozenset(
            name for name, topic in setup.scorer.topics.items() if topic.thresholds != setup.topics[name].thresholds
        )
        return Explanation(judgement.turn, judgement.seen, tried, judgement.decision, parts, by_hand, judgement.dropped)

    def run_test(self, test: TestConfig) -> TestResult:
        """Judge the sentence of a policy test; in shadow mode by what an enforcing policy would do."""
        said: list[Mapping[str, object]] = [{"role": "user", "content": test.say}]
        for text in reversed(test.after):
            said[:0] = [{"role": "user", "content": text}, {"role": "assistant", "content": ""}]
        with self._lease() as setup:
            unlogged = replace(setup, log=None)
            decision = _wait(judging(unlogged, read(said, (), setup.context_turns), test.given.request())).decision
        return TestResult(test, decision, (decision.shadow or decision.action) is test.expect)

    def run_tests(self, config: Config, path: str | Path | None) -> None:
        """Run the tests of a config. Raises `ConfigError` with those that failed."""
        results = [self.run_test(test) for test in config.tests] if path is not None else []
        failed = [Problem(str(path), None, f"tests[{i}]", str(result)) for i, result in enumerate(results) if not result.passed]
        if failed:
            raise ConfigError(failed)

    def close(self) -> None:
        """Stop the scorers' workers and write what the log still holds."""
        self._setup.scorer.close()
        for scorer, _ in self._setup.stronger.values():
            scorer.close()
        if self._setup.log is not None:
            self._setup.log.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


def _log_of(config: Config, near: Path) -> DecisionLog | None:
    """The decision log that a config asks for, opened. Raises `LogError`."""
    return DecisionLog(near / config.log.path, **config.log.options()) if config.log else None


def _served(scorer: Scorer, thresholds: Mapping[str, Thresholds]) -> dict[str, Topic]:
    return {name: replace(topic, thresholds=thresholds.get(name, topic.thresholds)) for name, topic in scorer.topics.items()}


def _check_names(setup: Setup) -> None:
    missing = sorted(setup.policies.topics_used() - set(setup.topics))
    if missing:
        raise ValueError(f"the policy names topics that the scorer does not know: {', '.join(missing)}")
    asked = {policy.escalate.to for policy in setup.policies.every() if policy.escalate}
    if not asked <= set(setup.stronger):
        raise ValueError(f"the policy escalates to scorers that are not there: {', '.join(sorted(asked - set(setup.stronger)))}")


def _wait(steps: Waits[Judgement]) -> Judgement:
    """Go through the steps in this thread."""
    try:
        waiting, seconds = next(steps)
        while True:
            futures.wait((waiting,), seconds)
            waiting, seconds = _resume(steps, waiting)
    except StopIteration as done:
        return _judgement(done)


async def _await(steps: Waits[Judgement]) -> Judgement:
    """Go through the steps in this event loop."""
    try:
        waiting, seconds = next(steps)
        while True:
            if not waiting.done():
                await _settled(waiting, seconds)
            waiting, seconds = _resume(steps, waiting)
    except StopIteration as done:
        return _judgement(done)


async def _settled(waiting: Future[Scores], seconds: float) -> None:
    """Wait until a future is done, but no longer; a task that is cancelled meanwhile cancels the future too."""
    future = asyncio.wrap_future(waiting)
    try:
        await asyncio.wait((future,), timeout=seconds)
    finally:
        if not future.done():
            future.cancel()
        elif not future.cancelled():
            future.exception()  # taken notice of here, told by `waiting`


def _resume(steps: Waits[Judgement], waiting: Future[Scores]) -> tuple[Future[Scores], float]:
    """Tell the steps what came of the future; what they wait for next, or `StopIteration` at their end."""
    if not waiting.done():
        waiting.cancel()
        return steps.throw(futures.TimeoutError())
    if waiting.cancelled():
        return steps.throw(ScoringError("the scoring was cancelled"))
    error = waiting.exception()
    return steps.send(waiting.result()) if error is None else steps.throw(error)


def _judgement(done: StopIteration) -> Judgement:
    judgement: Judgement = done.value
    return judgement
