"""The decision is a pure function: its order, and the laws that hold for every policy."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guardrail.policy import ALLOW, REFUSE, Action, Do, Mode, Observation, Policy, Rule
from guardrail.scoring import Band, Score, Thresholds, Topic

LIMITS = Thresholds(0.3, 0.7)
RELATED, UNSURE, NOT = 0.9, 0.5, 0.1


def seen(length: int = 10, limits: Thresholds = LIMITS, **scores: float | tuple[float, float]) -> Observation:
    """An observation from P(related) per topic, or (lowest, highest)."""
    pairs = {name: value if isinstance(value, tuple) else (value, value) for name, value in scores.items()}
    topics = {name: Topic(limits, "adapter", "1") for name in pairs}
    return Observation({name: Score(*pair) for name, pair in pairs.items()}, topics, length)


@pytest.mark.parametrize(
    ("policy", "observation", "action", "rule"),
    [
        (Policy(allow=("a",)), seen(a=RELATED), Action.ALLOW, "allow: a"),
        (Policy(allow=("a",)), seen(a=NOT), Action.REFUSE, "allow"),
        (Policy(allow=("a",)), seen(a=UNSURE), Action.ALLOW, "unsure"),
        (Policy(allow=("a",), unsure=REFUSE), seen(a=UNSURE), Action.REFUSE, "unsure"),
        (Policy(allow=("a",), unsure=Do(Action.ROUTE, "big")), seen(a=UNSURE), Action.ROUTE, "unsure"),
        (Policy(allow=("a", "b")), seen(a=NOT, b=RELATED), Action.ALLOW, "allow: b"),
        (Policy(allow=("a",), deny=("b",)), seen(a=RELATED, b=RELATED), Action.REFUSE, "deny: b"),
        (Policy(allow=("a",), deny=("b",), unsure=REFUSE), seen(a=RELATED, b=UNSURE), Action.REFUSE, "unsure"),
        (Policy(allow=("a",), deny=("b",)), seen(a=NOT, b=UNSURE), Action.REFUSE, "allow"),
        (Policy(deny=("b",)), seen(b=NOT), Action.ALLOW, "deny"),
        (Policy(deny=("b",)), seen(b=RELATED), Action.REFUSE, "deny: b"),
        (Policy(allow=("a",)), seen(a=(NOT, RELATED)), Action.REFUSE, "allow"),
        (Policy(deny=("a",)), seen(a=(NOT, RELATED)), Action.REFUSE, "deny: a"),
    ],
)
def test_order(policy: Policy, observation: Observation, action: Action, rule: str) -> None:
    """Deny beats allow, allow beats unsure; allowed topics are read at the lowest part, denied ones at the highest."""
    decision = policy.decide(observation)
    assert (decision.action, decision.rule) == (action, rule)


def rule_of(do: Do | None, *bands: Band, longer: int | None = None, flag: str | None = None) -> Rule:
    return Rule("r", do, flag, {"a": frozenset(bands)} if bands else {}, longer)


def test_the_first_rule_that_holds_decides() -> None:
    """Rules come before allow and deny, and the first match wins."""
    long = rule_of(Do(Action.ROUTE, "large"), Band.RELATED, longer=100)
    never = rule_of(REFUSE, Band.RELATED)
    policy = Policy(allow=("a",), rules=(long, never))
    assert policy.decide(seen(101, a=RELATED)).route == "large"
    assert policy.decide(seen(100, a=RELATED)).action is Action.REFUSE
    assert list(policy.tried(seen(101, a=RELATED))) == [("r", True)]


@pytest.mark.parametrize(("do", "holds"), [(ALLOW, False), (REFUSE, True)])
def test_a_mixed_text_is_read_cautiously(do: Do, holds: bool) -> None:
    """Of a text with parts of both kinds, a passing rule wants all parts, a refusing one a single part."""
    policy = Policy(allow=("a",), rules=(rule_of(do, Band.RELATED),))
    decision = policy.decide(seen(a=(NOT, RELATED)))
    assert (decision.rule == "r") is holds
    assert decision.action is Action.REFUSE


def test_flags_accompany_any_action() -> None:
    """A flag marks the decision and does not make it."""
    policy = Policy(allow=("a",), rules=(rule_of(None, Band.RELATED, flag="trek"),))
    decision = policy.decide(seen(a=RELATED))
    assert (decision.action, decision.flags) == (Action.ALLOW, ("trek",))


def test_shadow_lets_pass_and_tells() -> None:
    """In shadow mode everything passes, a failed guard too, and the decision says what would have happened."""
    policy = Policy(allow=("a",), mode=Mode.SHADOW)
    decision = policy.decide(seen(a=NOT))
    assert (decision.action, decision.shadow, decision.reply) == (Action.ALLOW, Action.REFUSE, "")
    failed = policy.decide_unscored("boom")
    assert (failed.action, failed.shadow) == (Action.ALLOW, Action.REFUSE)


def test_a_failed_guard_refuses_unless_told_otherwise() -> None:
    """`on_error` decides, and the decision carries the fault."""
    assert Policy(allow=("a",)).decide_unscored("boom", 2.0).action is Action.REFUSE
    open_ = Policy(allow=("a",), on_error=Action.ALLOW).decide_unscored("boom", 2.0)
    assert (open_.action, open_.error, open_.retry_after) == (Action.ALLOW, "boom", 2.0)


def test_replies() -> None:
    """One of several replies by the seed, `{topic}` filled with the topics' titles, a rule's own reply first."""
    policy = Policy(allow=("a", "star_trek"), replies=("no {topic}", "never"), titles={"a": "Apples"})
    observation = seen(a=NOT, star_trek=NOT)
    assert policy.decide(observation).reply == "no Apples or star trek"
    assert policy.decide(replace(observation, seed=1)).reply == "never"
    own = replace(policy, rules=(rule_of(Do(Action.REFUSE, replies=("own",)), Band.NOT_RELATED),))
    assert own.decide(observation).reply == "own"


PROBABILITY = st.floats(0, 1)
STRICTNESS = {Action.REFUSE: 0, Action.ROUTE: 1, Action.ALLOW: 2}


@given(a=PROBABILITY, b=PROBABILITY, low=PROBABILITY, high=PROBABILITY, raised=PROBABILITY, refuse=st.booleans())
def test_raising_a_threshold_never_allows_more(a: float, b: float, low: float, high: float, raised: float, refuse: bool) -> None:
    """Law: with a higher `related` threshold on the allowed topic nothing passes that did not pass before."""
    low, high = sorted((low, high))
    policy = Policy(allow=("a",), deny=("b",), unsure=REFUSE if refuse else ALLOW)
    before = policy.decide(seen(limits=Thresholds(low, high), a=a, b=b))
    observation = seen(limits=Thresholds(low, high), a=a, b=b)
    stricter = {**observation.topics, "a": Topic(Thresholds(low, max(high, raised)), "adapter", "1")}
    after = policy.decide(replace(observation, topics=stricter))
    assert STRICTNESS[after.action] <= STRICTNESS[before.action]


@given(a=PROBABILITY, b=PROBABILITY)
def test_deny_beats_allow(a: float, b: float) -> None:
    """Law: what is related to a denied topic is refused, whatever else it is."""
    decision = Policy(allow=("a",), deny=("b",)).decide(seen(a=a, b=b))
    assert b < LIMITS.related or decision.action is Action.REFUSE


@given(a=PROBABILITY, b=PROBABILITY, c=PROBABILITY)
def test_the_order_of_topics_does_not_matter(a: float, b: float, c: float) -> None:
    """Law: allow and deny lists are sets."""
    observation = seen(a=a, b=b, c=c)
    one = Policy(allow=("a", "b"), deny=("c",)).decide(observation)
    other = Policy(allow=("b", "a"), deny=("c",)).decide(observation)
    assert one.action is other.action


@given(low=PROBABILITY, high=PROBABILITY)
def test_thresholds(low: float, high: float) -> None:
    """Bands partition [0, 1]; wrong thresholds cannot be made."""
    if low > high:
        with pytest.raises(ValueError, match="thresholds"):
            Thresholds(low, high)
        return
    limits = Thresholds(low, high)
    assert limits.band(high) is Band.RELATED
    assert low == high or limits.band(low) is Band.UNSURE
    assert limits.predicted(high) is Band.RELATED
