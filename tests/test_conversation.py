"""Over a whole conversation: a refused turn changes nothing that comes after it, and no client can bring it back unscored."""

from __future__ import annotations

import asyncio
import threading
import zlib
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from guardrail import Action, Guard, Policy
from guardrail.chat import Turn
from guardrail.errors import ScoringError, UnreadableError
from guardrail.history import Memory
from guardrail.judging import Judgement
from guardrail.policy import REFUSE, Mode
from guardrail.scoring import Score, Scores
from guardrail.testing import FixedScorer

Messages = list[dict[str, Any]]


def by_topic(turn: Turn) -> float:
    """Related are Spock and, after him, a follow-up; a switch to something else is not."""
    if "Spock" in turn.text:
        return 0.99
    return 0.99 if "his" in turn.text and any("Spock" in earlier for earlier in turn.context) else 0.01


def by_chance(turn: Turn) -> float:
    """Any function of text and context will do."""
    return zlib.crc32(repr((turn.text, turn.context)).encode()) % 100 / 100


def conversation(*turns: str | tuple[str, ...]) -> Messages:
    """User turns (a tuple is several messages in a row), each but the last one with a reply."""
    messages: Messages = [{"role": "system", "content": "You are Spock."}]
    for number, turn in enumerate(turns):
        texts = (turn,) if isinstance(turn, str) else turn
        messages += [{"role": "user", "content": text} for text in texts]
        messages += [{"role": "assistant", "content": f"reply {number}"}]
    return messages[:-1]


def guard_by(score: Any, **options: Any) -> Guard:
    return Guard(FixedScorer(star_trek=score), Policy(allow=("star_trek",), unsure=REFUSE), **options)


def kept(messages: Messages, judgement: Judgement) -> list[Any]:
    return [m["content"] for i, m in enumerate(messages) if i not in judgement.dropped]


TURN = st.one_of(
    st.sampled_from(["Spock?", "his father?", "my tax", "hello"]), st.lists(st.text(max_size=4), min_size=1, max_size=2)
)


@settings(max_examples=200, deadline=None)
@given(turns=st.lists(TURN, min_size=2, max_size=7), context_turns=st.integers(0, 3), chance=st.booleans(), warm=st.booleans())
def test_a_refused_turn_was_never_there(turns: list[Any], context_turns: int, chance: bool, warm: bool) -> None:
    """Law: for each refused turn, a later decision is the same as without the turn and its reply, and so is what is sent."""
    turns = [tuple(turn) if isinstance(turn, list) else turn for turn in turns]
    guard = guard_by(by_chance if chance else by_topic, context_turns=context_turns)
    messages = conversation(*turns)
    whole = guard.judge(messages)
    for place in range(len(turns) - 1):
        said = guard.judge(conversation(*turns[: place + 1]))
        if said.decision.allowed:
            continue
        other = guard if warm else guard_by(by_chance if chance else by_topic, context_turns=context_turns)
        without = conversation(*turns[:place], *turns[place + 1 :])
        judgement = other.judge(without)
        assert (judgement.turn, judgement.decision.scores) == (whole.turn, whole.decision.scores)
        assert (judgement.decision.action, judgement.decision.rule) == (whole.decision.action, whole.decision.rule)
        words = [content for content in kept(messages, whole) if not str(content).startswith("reply")]
        assert [content for content in kept(without, judgement) if not str(content).startswith("reply")] == words


@pytest.mark.parametrize(
    ("turns", "action", "sent"),
    [
        (("Spock?", "and his father?"), Action.ALLOW, ["Spock?", "reply 0", "and his father?"]),
        (("my tax", "Spock?"), Action.ALLOW, ["Spock?"]),
        (("Spock?", "my tax"), Action.REFUSE, ["Spock?", "reply 0", "my tax"]),
        (("Spock?", "my tax", "and his father?"), Action.ALLOW, ["Spock?", "reply 0", "and his father?"]),
        (("my tax", "and his father?"), Action.REFUSE, ["and his father?"]),
        (("my tax", "more tax", "still tax", "Spock?"), Action.ALLOW, ["Spock?"]),
    ],
    ids=["follow-up", "after a refusal", "switch", "follow-up over a refusal", "follow-up of nothing", "three refusals"],
)
def test_conversations(turns: tuple[str, ...], action: Action, sent: list[str]) -> None:
    """Follow-ups pass, switches do not, and no refusal poisons what comes after it; sync and async."""
    messages = conversation(*turns)
    for judgement in (guard_by(by_topic).judge(messages), asyncio.run(guard_by(by_topic).ajudge(messages))):
        assert judgement.decision.action is action
        assert kept(messages, judgement) == ["You are Spock.", *sent]


def test_tools_go_with_their_turn_and_instructions_stay() -> None:
    """A refused turn takes its tool calls and results along, never a system message."""
    messages = [
        {"role": "user", "content": "my tax"},
        {"role": "assistant", "content": None, "tool_calls": []},
        {"role": "tool", "content": "result"},
        {"role": "developer", "content": "be brief"},
        {"role": "assistant", "content": "done"},
        {"role": "user", "content": "Spock?"},
    ]
    assert guard_by(by_topic).judge(messages).dropped == (0, 1, 2, 4)


def test_history_keep() -> None:
    """`history: keep` forwards everything; refused turns are no context all the same."""
    judgement = guard_by(by_topic, drop_refused=False).judge(conversation("Spock?", "my tax", "his father"))
    assert (judgement.dropped, judgement.turn.context) == ((), ("Spock?",))


def test_shadow_drops_nothing() -> None:
    """In shadow mode nothing was refused."""
    guard = Guard(FixedScorer(star_trek=by_topic), Policy(allow=("star_trek",), mode=Mode.SHADOW))
    judgement = guard.judge(conversation("my tax", "Spock?"))
    assert (judgement.dropped, judgement.turn.context) == ((), ("my tax",))


def test_known_turns_are_not_scored_again() -> None:
    """Each turn of a growing conversation costs one score; a forged history is scored, not believed."""
    scorer = FixedScorer(star_trek=by_topic)
    guard = Guard(scorer, Policy(allow=("star_trek",)))
    turns = ["Spock?", "my tax", "his father?", "my cat", "his mother?"]
    for number in range(len(turns)):
        guard.judge(conversation(*turns[: number + 1]))
    assert [turn.text for turn in scorer.turns] == turns
    scorer.turns.clear()
    guard.judge(conversation("do my tax, as agreed", "go on"))
    assert [turn.text for turn in scorer.turns] == ["do my tax, as agreed", "go on"]


@pytest.mark.parametrize("on_error", [Action.REFUSE, Action.ALLOW])
def test_an_earlier_turn_that_cannot_be_scored(on_error: Action) -> None:
    """What is unknown is not guessed: `on_error` decides, and the decision carries the fault."""
    scorer = FixedScorer(star_trek=lambda turn: ScoringError("gone") if "tax" in turn.text else 0.9)
    guard = Guard(scorer, Policy(allow=("star_trek",), on_error=on_error))
    decision = guard.judge(conversation("tax", "Spock?")).decision
    assert (decision.action, decision.error) == (on_error, "ScoringError: gone")


def test_an_earlier_turn_that_is_too_long() -> None:
    """It is left out like a refused one; where the history is kept it must not be forwarded unjudged."""
    scorer = FixedScorer(star_trek=lambda turn: UnreadableError("too long") if "long" in turn.text else 0.9)
    messages = conversation("long", "Spock?")
    assert Guard(scorer, Policy(allow=("star_trek",))).judge(messages).dropped == (1, 2)
    with pytest.raises(UnreadableError):
        Guard(scorer, Policy(allow=("star_trek",)), drop_refused=False).judge(messages)


def test_ten_thousand_messages() -> None:
    """All are judged, in one judgement, and known the next time."""
    scorer = FixedScorer(star_trek=by_topic)
    guard = Guard(scorer, Policy(allow=("star_trek",)))
    messages = conversation(*(f"Spock {n}" for n in range(5000)))
    assert guard.judge(messages).decision.action is Action.ALLOW
    assert guard.judge(messages).dropped == ()
    assert len(scorer.turns) == 5001


class Slow(FixedScorer):
    """Takes a moment for each turn, on a thread."""

    def __init__(self) -> None:
        super().__init__(star_trek=0.9)
        self.pool = ThreadPoolExecutor(1)

    def submit(self, turn: Turn) -> Future[Scores]:
        self.turns.append(turn)
        return self.pool.submit(self._score)

    def _score(self) -> Scores:
        threading.Event().wait(0.02)
        return {"star_trek": Score(0.9, 0.9)}


def test_a_history_that_takes_too_long() -> None:
    """The longest wait holds for the whole judgement; what was scored is known, so that the next try goes further."""
    scorer = Slow()
    guard = Guard(scorer, Policy(allow=("star_trek",)), timeout=0.2)
    messages = conversation(*(f"Spock {n}" for n in range(20)))
    first = guard.judge(messages).decision
    assert (first.action, first.error) == (Action.REFUSE, "ScoringError: no score within 0.2 s")
    for _ in range(20):
        if guard.judge(messages).decision.error is None:
            break
    assert guard.judge(messages).decision.action is Action.ALLOW
    scorer.pool.shutdown()


def test_under_load() -> None:
    """Many conversations at once in one event loop: each gets its own decision and its own dropped messages."""
    guard = guard_by(by_topic)

    async def one(number: int) -> bool:
        refused = number % 3
        turns = [*(f"tax {number} {n}" for n in range(refused)), f"Spock {number}", "his father?"]
        judgement = await guard.ajudge(conversation(*turns))
        return judgement.dropped == tuple(range(1, 1 + 2 * refused)) and judgement.decision.action is Action.ALLOW

    async def many() -> list[bool]:
        return await asyncio.gather(*(one(number) for number in range(500)))

    assert all(asyncio.run(many()))


def test_memory_is_bounded_and_forgets() -> None:
    """The ones unused for longest go first, old ones are forgotten, and no text is kept."""
    scores = {"star_trek": Score(0.9, 0.9)}
    memory = Memory(size=2)
    for text in ("a", "b"):
        memory.remember("", Turn(text), scores)
    assert memory.recall("", Turn("a")) is scores
    memory.remember("", Turn("c"), scores)
    assert (len(memory), memory.recall("", Turn("b")), memory.recall("", Turn("a"))) == (2, None, scores)
    assert memory.recall("", Turn("a", ("b",))) is None
    assert memory.recall("large", Turn("a")) is None
    old = Memory(ttl=-1)
    old.remember("", Turn("a"), scores)
    assert old.recall("", Turn("a")) is None
    secret = Memory()
    secret.remember("", Turn("my secret"), scores)
    assert b"my secret" not in b"".join(secret._known)


def test_parts_of_a_turn_cannot_be_shifted_into_its_context() -> None:
    """Two turns of the same letters are two turns."""
    memory = Memory()
    memory.remember("", Turn("ab", ("c",)), {"t": Score(0.1, 0.1)})
    assert memory.recall("", Turn("a", ("bc",))) is None
    assert memory.recall("", Turn("abc")) is None
