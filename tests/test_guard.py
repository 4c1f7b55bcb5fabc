"""A guard judges in threads and event loops alike, and a fault never lets a turn through unless the policy says so."""

from __future__ import annotations

import asyncio
from concurrent.futures import Future

import pytest

from guardrail import Action, Guard, Policy
from guardrail.chat import Turn
from guardrail.errors import OverloadedError, ScoringError, UnreadableError
from guardrail.policy import Decision
from guardrail.scoring import Scores
from guardrail.testing import FixedScorer

SAID = [{"role": "user", "content": "Spock?"}, {"role": "assistant", "content": "x"}, {"role": "user", "content": "his father"}]


def trek(turn: Turn) -> float:
    return 0.99 if "Spock" in " ".join((*turn.context, turn.text)) else 0.01


class Stuck(FixedScorer):
    """Never answers."""

    def submit(self, turn: Turn) -> Future[Scores]:
        self.future: Future[Scores] = Future()
        return self.future


class Full(FixedScorer):
    """Takes nothing."""

    def submit(self, turn: Turn) -> Future[Scores]:
        raise OverloadedError("full", 1.5)


def both(guard: Guard, said: object) -> tuple[Decision, Decision]:
    """The decision by either way, timings apart."""
    return guard.check(said), asyncio.run(guard.acheck(said))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("said", "action"),
    [
        ("Spock?", Action.ALLOW),
        ("bread", Action.REFUSE),
        (SAID, Action.ALLOW),
        (SAID[2:], Action.REFUSE),
        (Turn("Spock"), Action.ALLOW),
    ],
)
def test_sync_and_async_agree(said: object, action: Action) -> None:
    """The same steps for a text, for messages and for a turn, context included."""
    guard = Guard(FixedScorer(star_trek=trek), Policy(allow=("star_trek",)))
    sync, asynchronous = both(guard, said)
    assert sync.action is asynchronous.action is action
    assert sync.scores == asynchronous.scores
    assert sync.timings["guard_ms"] >= 0


@pytest.mark.parametrize(
    ("scorer", "error", "retry_after"),
    [
        (FixedScorer(star_trek=RuntimeError("boom")), "RuntimeError: boom", None),
        (FixedScorer(star_trek=ScoringError("no device")), "ScoringError: no device", None),
        (Full(star_trek=0.0), "OverloadedError: full", 1.5),
        (Stuck(star_trek=0.0), "ScoringError: no score within 0.05 s", None),
    ],
)
@pytest.mark.parametrize(("on_error", "mode_action"), [(Action.REFUSE, Action.REFUSE), (Action.ALLOW, Action.ALLOW)])
def test_faults(scorer: FixedScorer, error: str, retry_after: float | None, on_error: Action, mode_action: Action) -> None:
    """Whatever breaks, `on_error` decides and the decision says what broke."""
    guard = Guard(scorer, Policy(allow=("star_trek",), on_error=on_error), timeout=0.05)
    for decision in both(guard, "Spock?"):
        assert (decision.action, decision.error, decision.retry_after) == (mode_action, error, retry_after)


async def test_cancelling_cancels_the_scoring() -> None:
    """A caller that goes away takes its work along."""
    scorer = Stuck(star_trek=0.0)
    task = asyncio.create_task(Guard(scorer, Policy(allow=("star_trek",))).acheck("x"))
    await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert scorer.future.cancelled()


def test_what_cannot_be_read_is_never_let_through() -> None:
    """An image is an error at the caller, also where `on_error: allow`."""
    guard = Guard(FixedScorer(star_trek=0.99), Policy(allow=("star_trek",), on_error=Action.ALLOW))
    with pytest.raises(UnreadableError):
        guard.check([{"role": "user", "content": [{"type": "image_url"}]}])
    with pytest.raises(UnreadableError):
        guard.check(b"bytes")  # type: ignore[arg-type]


def test_a_policy_on_topics_that_nobody_scores() -> None:
    """That is found when the guard is made."""
    with pytest.raises(ValueError, match="klingon"):
        Guard(FixedScorer(star_trek=0.9), Policy(allow=("klingon",)))


def test_context_is_limited() -> None:
    """Only the newest `context_turns` earlier turns are scored."""
    scorer = FixedScorer(star_trek=0.9)
    Guard(scorer, Policy(allow=("star_trek",)), context_turns=1).check("c", context=["a", "b"])
    assert scorer.turns == [Turn("c", ("b",))]


def test_explain_tells_the_rules_tried() -> None:
    """The story holds what the decision was made from."""
    guard = Guard(FixedScorer(star_trek=trek), Policy(allow=("star_trek",)))
    story = guard.explain("his father", context=["Spock"])
    assert (story.turn.context, story.decision.action, story.tried) == (("Spock",), Action.ALLOW, ())
