"""The queue: bounded, each distinct turn once, cancelled turns dropped."""

from __future__ import annotations

import threading
from concurrent.futures import Future

import pytest

from guardrail.chat import Turn
from guardrail.engine.queue import FIRST_GUESS, TurnQueue
from guardrail.engine.results import Results, turn_key
from guardrail.errors import ClosedError, OverloadedError
from guardrail.scoring import Score, Scores

MANY = 1_000_000


def joined(queue: TurnQueue, *texts: str) -> list[Future[Scores]]:
    return [queue.join(text.encode(), Turn(text)) for text in texts]


def texts_of(queue: TurnQueue, tokens: int = MANY) -> list[str]:
    return [flight.turn.text for flight in queue.take(tokens)]


def test_first_come_first_served() -> None:
    """In the order of arrival, all that fit into the budget at once, and never fewer than one."""
    queue = TurnQueue(10, workers=1)
    joined(queue, "a" * 400, "b" * 40, "c" * 40, "d" * 400)
    assert [text[0] for text in texts_of(queue, 0)] == ["a"]
    assert [text[0] for text in texts_of(queue, 50)] == ["b", "c"]
    assert [text[0] for text in texts_of(queue)] == ["d"]


def test_same_turn_is_taken_once() -> None:
    """While it waits and while it is worked on, whoever asks for it joins; after it landed it starts anew."""
    queue = TurnQueue(10, workers=1)
    first, second = joined(queue, "a", "a")
    [flight] = queue.take(MANY)
    [third] = joined(queue, "a")
    assert len(queue) == 0
    assert queue.land(flight) == [first, second, third]
    joined(queue, "a")
    assert texts_of(queue) == ["a"]


def test_full_queue_turns_away_at_once() -> None:
    """With the time that the waiting turns will take; a turn that waits already can still be joined."""
    queue = TurnQueue(3, workers=2)
    joined(queue, "a", "b", "c")
    with pytest.raises(OverloadedError) as raised:
        joined(queue, "d")
    assert raised.value.retry_after == pytest.approx(max(0.1, 3 * FIRST_GUESS / 2))
    assert joined(queue, "b")


def test_retry_after_follows_the_measured_time() -> None:
    """The slower the turns were lately, the longer the wait that is told."""
    queue = TurnQueue(3, workers=2)
    joined(queue, "a", "b", "c")
    for _ in range(100):
        queue.worked(4, 8.0)
    with pytest.raises(OverloadedError) as raised:
        joined(queue, "d")
    assert raised.value.retry_after == pytest.approx(3 * 2.0 / 2, rel=0.01)


def test_cancelled_turn_is_not_taken() -> None:
    """Unless somebody else waits for it."""
    queue = TurnQueue(10, workers=1)
    gone, shared, _ = joined(queue, "a", "b", "b")
    assert gone.cancel()
    assert shared.cancel()
    assert texts_of(queue) == ["b"]


def test_cancelled_turns_make_room() -> None:
    """A full queue of turns that nobody waits for turns nobody away."""
    queue = TurnQueue(2, workers=1)
    for future in joined(queue, "a", "b"):
        future.cancel()
    joined(queue, "c")
    assert texts_of(queue) == ["c"]


def test_take_waits_for_work() -> None:
    """A worker sleeps until there is something to do, and through turns that were given up."""
    queue = TurnQueue(10, workers=1)
    found: list[list[str]] = []
    worker = threading.Thread(target=lambda: found.append(texts_of(queue)))
    worker.start()
    joined(queue, "a")
    worker.join(10)
    assert found == [["a"]]


def test_closed_queue() -> None:
    """Gives back what waits, wakes the workers and lets nobody in."""
    queue = TurnQueue(10, workers=2)
    found: list[list[str]] = []
    workers = [threading.Thread(target=lambda: found.append(texts_of(queue))) for _ in range(2)]
    for worker in workers:
        worker.start()
    assert queue.close() == []
    for worker in workers:
        worker.join(10)
    assert found == [[], []]
    with pytest.raises(ClosedError):
        joined(queue, "a")
    waiting = TurnQueue(10, workers=1)
    joined(waiting, "a", "b")
    assert [flight.turn.text for flight in waiting.close()] == ["a", "b"]


def test_results_keep_the_ones_used_last() -> None:
    """The cache is as large as it was told, and what is asked for stays."""
    results, scores = Results(2), {"topic": Score(0.1, 0.2)}
    results.put(b"a", scores)
    results.put(b"b", scores)
    assert results.get(b"a") is scores
    results.put(b"c", scores)
    assert [results.get(key) for key in (b"a", b"b", b"c")] == [scores, None, scores]


def test_turns_have_keys_of_their_own() -> None:
    """Text and context are told apart wherever they are split, and broken text has a key too."""
    turns = [
        Turn("ab"), Turn("a", ("b",)), Turn("b", ("a",)), Turn("", ("ab",)), Turn("a", ("b", "")), Turn("a", ("", "b")),
        Turn("\ud83d\ude00"), Turn("😀"), Turn('["a"]'), Turn("a\0b"),
    ]  # fmt: skip
    assert len({turn_key(turn) for turn in turns}) == len(turns)
    assert turn_key(Turn("ab")) == turn_key(Turn("ab"))
