"""The steps from what was said to a decision, over a whole conversation; `guard` drives them in threads and event loops.

They are written once, as generators: each yields the future that it waits for, with the longest wait in seconds, and is sent the
scores or thrown what went wrong.

A conversation is judged from its beginning. Each earlier user turn is judged as it was when it was said, with the turns before it
that passed; one that is refused is left out, with its reply, of everything after it. So a refused turn changes no later decision,
and a client that sends it again, in whatever history, gains nothing.
"""

from __future__ import annotations

import zlib
from collections.abc import Generator, Mapping, Sequence
from concurrent import futures
from concurrent.futures import Future
from dataclasses import dataclass, replace
from time import perf_counter
from types import MappingProxyType
from typing import TypeVar

from guardrail.audit import DecisionLog
from guardrail.chat import Message, Round, Turn, read_messages, rounds_of, text_now
from guardrail.errors import OverloadedError, ScoringError, UnreadableError
from guardrail.history import Memory
from guardrail.policy import UNSURE, Decision, Escalate, Observation, Policies, Request
from guardrail.scoring import Scorer, Scores, Topic

Said = str | Turn | Sequence[Mapping[str, object]]
"""What can be judged: a text, OpenAI messages, or a turn."""
T = TypeVar("T")
Waits = Generator[tuple["Future[Scores]", float], Scores, T]


@dataclass(frozen=True, slots=True)
class Setup:
    """All that a judgement needs; it sees the same one from its beginning to its end."""

    scorer: Scorer
    topics: Mapping[str, Topic]
    """Of `scorer`, with the thresholds that are served."""
    policies: Policies
    context_turns: int
    timeout: float
    """Longest wait for all scores of one judgement, in seconds."""
    drop_refused: bool
    """Whether refused turns are to be left out of what is forwarded."""
    stronger: Mapping[str, tuple[Scorer, Mapping[str, Topic]]]
    """Scorers to escalate to, with their topics."""
    log: DecisionLog | None
    must_log: bool
    """Whether nothing passes that cannot be logged."""
    memory: Memory


@dataclass(frozen=True, slots=True)
class Judgement:
    """A decision, what it was made on, and what of the conversation must not be passed on.

    `dropped` are indices of messages: earlier user turns that were refused, with their replies and tool results. Send all other
    messages, in their order. It is empty with `history: keep`, and for a text or a `Turn`.
    """

    decision: Decision
    dropped: tuple[int, ...]
    turn: Turn
    seen: Observation | None
    """None where the turn could not be scored."""


@dataclass(frozen=True, slots=True)
class Conversation:
    """What is to be judged: the text of now, who says it, and the earlier turns, either given or yet to be judged."""

    text: str
    role: str = "user"
    context: tuple[str, ...] = ()
    rounds: tuple[Round, ...] = ()


def read(said: Said, context: Sequence[str], context_turns: int) -> Conversation:
    """What was said as a value. Raises `UnreadableError` when there is something that cannot be judged as text."""
    if isinstance(said, Turn):
        return Conversation(said.text, context=said.context)
    if isinstance(said, str):
        return Conversation(said, context=tuple(context)[-context_turns:] if context_turns else ())
    if isinstance(said, Sequence) and not isinstance(said, (bytes, bytearray)):
        messages = read_messages(said)
        rounds = rounds_of(messages)
        return Conversation(text_now(messages, rounds), _role(messages, rounds), rounds=tuple(rounds[:-1]))
    raise UnreadableError(f"cannot judge {type(said).__name__}: give a text or a list of messages")


def _role(messages: Sequence[Message], rounds: Sequence[Round]) -> str:
    return messages[-1].role if messages and not rounds else "user"


def judging(setup: Setup, said: Conversation, request: Request) -> Waits[Judgement]:
    """Judge a conversation; whatever breaks while scoring, the policy's `on_error` decides."""
    started = perf_counter()
    request = replace(request, role=said.role)
    past = _Past(setup, replace(request, role="user"), started + setup.timeout)
    seen, escalated = None, ""
    try:
        yield from past.judge(said.rounds)
        turn = past.turn(said.text, said.context)
        seen, escalated = yield from _observed(setup, turn, request, started + setup.timeout, known=False)
        decision = replace(setup.policies.decide(seen), escalated=escalated)
    except _Unscored as fault:
        turn = past.turn(said.text, said.context)
        decision = setup.policies.select(request).decide_unscored(str(fault), fault.retry_after, _seed(turn))
    decision = _logged(setup, turn, seen, _timed(decision, started), request)
    return Judgement(decision, tuple(past.dropped) if setup.drop_refused else (), turn, seen)


class _Past:
    """The earlier turns of a conversation: those that passed are context, the others are dropped."""

    def __init__(self, setup: Setup, request: Request, deadline: float) -> None:
        self._setup = setup
        self._request = request
        self._deadline = deadline
        self._passed: list[str] = []
        self.dropped: list[int] = []

    def turn(self, text: str, given: tuple[str, ...] = ()) -> Turn:
        """A text with the newest turns before it that passed."""
        turns = self._setup.context_turns
        return Turn(text, given or (tuple(self._passed[-turns:]) if turns else ()))

    def judge(self, rounds: Sequence[Round]) -> Waits[None]:
        """Judge them in order, oldest first."""
        if not self._setup.context_turns and not self._setup.drop_refused:
            return  # nobody would look at the result
        for earlier in rounds:
            if (yield from self._passes(self.turn(earlier.text))):
                self._passed.append(earlier.text)
            else:
                self.dropped.extend(earlier.places)

    def _passes(self, turn: Turn) -> Waits[bool]:
        try:
            seen, _ = yield from _observed(self._setup, turn, self._request, self._deadline, known=True)
        except UnreadableError:  # a turn that is too long was turned away when it was said, it must not block all later ones
            if self._setup.drop_refused:
                return False
            raise
        return self._setup.policies.select(self._request).decide(seen).allowed


def _observed(setup: Setup, turn: Turn, request: Request, deadline: float, *, known: bool) -> Waits[tuple[Observation, str]]:
    """What a policy may look at, and whether a stronger scorer had to be asked; `known` allows scores from memory."""
    scores = yield from _scored(setup, "", setup.scorer, turn, deadline - perf_counter(), known=known)
    seen = Observation(scores, setup.topics, len(turn.text), _seed(turn), request)
    policy = setup.policies.select(request)
    if policy.escalate is None or policy.verdict(seen).rule != UNSURE:
        return seen, ""
    return (yield from _escalated(setup, turn, seen, policy.escalate, deadline, known=known))


def _escalated(
    setup: Setup, turn: Turn, seen: Observation, escalate: Escalate, deadline: float, *, known: bool
) -> Waits[tuple[Observation, str]]:
    scorer, topics = setup.stronger[escalate.to]
    seconds = min(escalate.deadline_ms / 1000, deadline - perf_counter())
    try:
        scores = yield from _scored(setup, escalate.to, scorer, turn, seconds, known=known)
    except _Unscored as fault:  # the first verdict stands, and is marked
        return seen, f"{escalate.to}: {fault}"
    merged = replace(seen, scores={**seen.scores, **scores}, topics={**seen.topics, **topics})
    return merged, escalate.to


class _Unscored(Exception):
    """A scorer failed, in whatever way."""

    def __init__(self, cause: Exception) -> None:
        super().__init__(f"{type(cause).__name__}: {cause}")
        self.retry_after = cause.retry_after if isinstance(cause, OverloadedError) else None


def _scored(setup: Setup, name: str, scorer: Scorer, turn: Turn, seconds: float, *, known: bool) -> Waits[Scores]:
    scores = setup.memory.recall(name, turn) if known else None
    if scores is not None:
        return scores
    try:
        scores = yield scorer.submit(turn), max(seconds, 0.0)
    except UnreadableError:
        raise
    except futures.TimeoutError as exc:
        waited = max(seconds, 0.0) if name else setup.timeout
        raise _Unscored(ScoringError(f"no score within {waited:g} s")) from exc
    except Exception as exc:
        raise _Unscored(exc) from exc
    setup.memory.remember(name, turn, scores)
    return scores


def _logged(setup: Setup, turn: Turn, seen: Observation | None, decision: Decision, request: Request) -> Decision:
    if setup.log is None:
        return decision
    if setup.must_log and setup.log.failed:
        refused = setup.policies.select(request).refuse_unlogged(f"LogError: {setup.log.fault}", _seed(turn))
        decision = replace(refused, timings=decision.timings)
    setup.log.record(turn, seen, decision)
    return decision


def _seed(turn: Turn) -> int:
    """The same turn gets the same of several replies, whoever asks and whenever."""
    return zlib.crc32(turn.text.encode("utf-8", "replace"))


def _timed(decision: Decision, started: float) -> Decision:
    return replace(decision, timings=MappingProxyType({"guard_ms": (perf_counter() - started) * 1000}))
