"""What an operator can say in the config, and that it means what it says."""

from __future__ import annotations

import threading
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from guardrail import Action, Guard
from guardrail.chat import Turn
from guardrail.config import Config
from guardrail.policy import Decision, Request
from guardrail.reference import markdown, schema
from guardrail.scoring import Scores
from guardrail.testing import FixedScorer

ROOT = Path(__file__).parent.parent
NOBODY = Request()
SCORES = {"Spock": 0.95, "Kirk?": 0.8, "logic": 0.5, "bread": 0.05}


def by_word(turn: Turn) -> float:
    return next((score for word, score in SCORES.items() if word in turn.text), 0.05)


def config_of(**keys: Any) -> Config:
    return Config.model_validate({"topics": {"trek": {"adapter": "x"}}, "allow": ["trek"], "refuse": "no", **keys})


def decide(text: str, request: Request = NOBODY, stronger: Any = None, **keys: Any) -> Decision:
    guard = Guard.from_config(config_of(**keys), FixedScorer(trek=by_word), stronger=stronger or {})
    return guard.check(text, request=request)


@pytest.mark.parametrize(
    ("conditions", "text", "holds"),
    [
        ({"trek": "related"}, "Spock", True),
        ({"trek": "related"}, "logic", False),
        ({"trek": ["unsure", "not_related"]}, "logic", True),
        ({"trek": {"above": 0.9}}, "Spock", True),
        ({"trek": {"above": 0.9}}, "Kirk?", False),
        ({"trek": {"above": 0.95}}, "Spock", False),
        ({"trek": {"above": 0.7, "below": 0.9}}, "Kirk?", True),
        ({"trek": {"below": 0.1}}, "bread", True),
        ({"text_longer_than": 4}, "Spock", True),
        ({"text_longer_than": 5}, "Spock", False),
        ({"text_shorter_than": 6}, "Spock", True),
        ({"text_shorter_than": 5}, "Spock", False),
        ({"model": "gpt-*"}, "Spock", True),
        ({"model": ["o3", "gpt-4?"]}, "Spock", True),
        ({"model": "GPT-*"}, "Spock", False),
        ({"upstream": "default", "endpoint": "/v1/chat/*"}, "Spock", True),
        ({"upstream": "large"}, "Spock", False),
        ({"api_key": "staff"}, "Spock", True),
        ({"api_key": "pupils"}, "Spock", False),
        ({"headers": {"X-Tenant": "school-*"}}, "Spock", True),
        ({"headers": {"x-other": "*"}}, "Spock", False),
        ({"role": "user"}, "Spock", True),
        ({"role": "system"}, "Spock", False),
        ({"trek": "related", "text_longer_than": 100}, "Spock", False),
    ],
)
def test_conditions(conditions: dict[str, Any], text: str, holds: bool) -> None:
    """Each condition holds or not; all of a rule's conditions must."""
    request = Request(
        model="gpt-4o", upstream="default", api_key="staff", endpoint="/v1/chat/completions", headers={"x-tenant": "school-1"}
    )
    rules = [{"name": "the rule", "if": conditions, "do": "refuse", "reply": ["own reply"]}]
    decision = decide(text, request, rules=rules, unsure="allow")
    assert (decision.rule == "the rule") is holds
    assert (decision.reply == "own reply") is holds


def test_text_that_hides_in_a_system_message() -> None:
    """Its role is a fact that a rule can look at."""
    config = config_of(rules=[{"name": "r", "if": {"role": "system"}, "do": "refuse"}])
    guard = Guard.from_config(config, FixedScorer(trek=by_word))
    assert guard.check([{"role": "system", "content": "Spock"}]).rule == "r"
    assert guard.check([{"role": "system", "content": "x"}, {"role": "user", "content": "Spock"}]).rule == "allow: trek"


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"rules": [{"if": {}, "do": "allow"}]}, "at least one condition"),
        ({"rules": [{"if": {"trek": {"over": 1}}, "do": "allow"}]}, "above and below"),
        ({"rules": [{"if": {"trek": {"above": 1.5}}, "do": "allow"}]}, "from 0 to 1"),
        ({"rules": [{"if": {"trek": {"above": 0.5, "below": 0.4}}, "do": "allow"}]}, "smaller than below"),
        ({"rules": [{"if": {"trek": []}, "do": "allow"}]}, "must be related"),
        ({"rules": [{"if": {"text_longer_than": "5"}, "do": "allow"}]}, "valid integer"),
        ({"rules": [{"if": {"model": []}, "do": "allow"}]}, "at least 1"),
        ({"rules": [{"name": "unsure", "if": {"trek": "related"}, "do": "allow"}]}, "cannot be called"),
        ({"rules": [{"name": "a", "if": {"trek": "related"}, "do": "allow"}] * 2}, "two rules are called 'a'"),
        ({"rules": [{"if": {"trek": "related"}, "do": "allow", "reply": "x"}]}, "reply belongs to do: refuse"),
        ({"rules": [{"if": {"trek": "related"}, "do": "flag"}]}, "needs flag"),
        ({"unsure": {"route": 3}}, "route: NAME"),
        ({"escalate": {"to": "large", "deadline_ms": 0}}, "greater than 0"),
    ],
)
def test_mistakes(keys: dict[str, Any], words: str) -> None:
    """Each is told in words that say what would be right."""
    with pytest.raises(ValidationError, match=words):
        config_of(**keys)


POLICIES = {
    "staff": {"for": {"api_key": "staff"}, "allow": [], "deny": []},
    "strict": {"for": {"endpoint": "/v1/responses"}, "unsure": "refuse", "refuse": "strictly no"},
    "new": {"allow": [], "deny": ["trek"]},
}


@pytest.mark.parametrize(
    ("request_", "text", "action", "policy", "reply"),
    [
        (Request(), "logic", Action.ALLOW, "default", ""),
        (Request(), "bread", Action.REFUSE, "default", "no"),
        (Request(api_key="staff"), "bread", Action.ALLOW, "staff", ""),
        (Request(endpoint="/v1/responses"), "logic", Action.REFUSE, "strict", "strictly no"),
        (Request(endpoint="/v1/responses"), "Spock", Action.ALLOW, "strict", ""),
        (Request(endpoint="/v1/responses", api_key="staff"), "logic", Action.ALLOW, "staff", ""),
    ],
)
def test_policies_by_request(request_: Request, text: str, action: Action, policy: str, reply: str) -> None:
    """The first policy whose `for` fits judges; what it leaves out is taken from the top level."""
    decision = decide(text, request_, policies=POLICIES)
    assert (decision.action, decision.policy, decision.reply) == (action, policy, reply)


def test_policies_have_versions_of_their_own() -> None:
    """A change to one policy is a change of its version alone."""
    before = config_of(policies=POLICIES).policies_in_force()
    after = config_of(policies={**POLICIES, "strict": {**POLICIES["strict"], "refuse": "other"}}).policies_in_force()
    same = [one.version == other.version for one, other in zip(before.every(), after.every(), strict=True)]
    assert same == [True, True, False, True]


def test_a_shadow_policy_beside_an_enforced_one() -> None:
    """It is decided on the same scores, recorded, and changes nothing."""
    decision = decide("Spock", policies=POLICIES, shadow="new")
    assert decision.action is Action.ALLOW
    assert decision.beside is not None
    assert (decision.beside.policy, decision.beside.action, decision.beside.rule) == ("new", Action.REFUSE, "deny: trek")


def test_mode_per_policy() -> None:
    """A new policy can be tried in shadow mode on some requests, while the others are enforced."""
    policies = {"trial": {"for": {"model": "new-*"}, "mode": "shadow"}}
    trial = decide("bread", Request(model="new-1"), policies=policies)
    assert (trial.action, trial.shadow) == (Action.ALLOW, Action.REFUSE)
    assert decide("bread", policies=policies).action is Action.REFUSE


def test_what_the_policies_use() -> None:
    """Topics, upstreams and headers over all policies, for whoever has to provide them."""
    rules = [{"if": {"headers": {"X-Tenant": "a"}}, "do": "route", "to": "large"}]
    policies = {"a": {"for": {"headers": {"X-Plan": "pro"}}, "unsure": {"route": "pro"}}}
    used = config_of(rules=rules, policies=policies).policies_in_force()
    assert used.routes_used() == {"large", "pro"}
    assert used.headers_used() == {"x-tenant", "x-plan"}
    assert used.topics_used() == {"trek"}


class Sleeper(FixedScorer):
    """Answers when it is let."""

    def __init__(self) -> None:
        super().__init__(trek=0.99)
        self.pending: list[Future[Scores]] = []

    def submit(self, turn: Turn) -> Future[Scores]:
        self.pending.append(Future())
        return self.pending[-1]


ESCALATE = {"escalate": {"to": "large", "deadline_ms": 50}, "scorers": {"large": {"trek": {"adapter": "y"}}}}


@pytest.mark.parametrize(
    ("text", "large", "action", "escalated", "score"),
    [
        ("Spock", FixedScorer(trek=0.01), Action.ALLOW, "", 0.95),
        ("bread", FixedScorer(trek=0.99), Action.REFUSE, "", 0.05),
        ("logic", FixedScorer(trek=0.99), Action.ALLOW, "large", 0.99),
        ("logic", FixedScorer(trek=0.01), Action.REFUSE, "large", 0.01),
        ("logic", FixedScorer(trek=0.6), Action.ALLOW, "large", 0.6),
        ("logic", Sleeper(), Action.ALLOW, "large: ScoringError: no score within 0.05 s", 0.5),
        ("logic", FixedScorer(trek=RuntimeError("boom")), Action.ALLOW, "large: RuntimeError: boom", 0.5),
    ],
)
async def test_escalate(text: str, large: FixedScorer, action: Action, escalated: str, score: float) -> None:
    """Only what the scores cannot tell goes to the stronger scorer; past the deadline the first verdict stands, marked."""
    guard = Guard.from_config(config_of(unsure="allow", **ESCALATE), FixedScorer(trek=by_word), stronger={"large": large})
    for decision in (guard.check(text), await guard.acheck(text)):
        assert (decision.action, decision.escalated, decision.scores["trek"]) == (action, escalated, score)
    if isinstance(large, Sleeper):
        assert all(future.cancelled() for future in large.pending)


def test_escalating_to_nobody() -> None:
    """That is found when the guard is made."""
    with pytest.raises(ValueError, match="escalates to scorers that are not there: large"):
        Guard.from_config(config_of(**ESCALATE), FixedScorer(trek=by_word))


def test_thresholds_of_the_stronger_scorer() -> None:
    """Each scorer's scores are read through its own thresholds."""
    keys = {**ESCALATE, "scorers": {"large": {"trek": {"adapter": "y", "thresholds": {"not_related": 0.98, "related": 0.98}}}}}
    assert decide("logic", stronger={"large": FixedScorer(trek=0.9)}, **keys).action is Action.REFUSE


def test_given_in_a_policy_test() -> None:
    """A policy test can say who asks."""
    tests = [{"say": "bread", "expect": "refuse"}, {"say": "bread", "given": {"api_key": "staff"}, "expect": "allow"}]
    config = config_of(policies=POLICIES, tests=tests)
    guard = Guard.from_config(config, FixedScorer(trek=by_word))
    assert all(guard.run_test(test).passed for test in config.tests)


def test_client_keys_have_names() -> None:
    """The proxy knows a client by its key, compared whole."""
    config = config_of(proxy={"api_keys": {"staff": "s3cret", "pupils": "pup"}})
    assert config.proxy is not None
    assert [config.proxy.caller(token) for token in ("s3cret", "pup", "s3cre", "", "é")] == ["staff", "pupils", "", "", ""]
    assert "s3cret" not in repr(config)


def test_the_schema_knows_the_short_forms() -> None:
    """An editor completes `unsure: refuse`, `unsure: {route: x}`, one reply or several, bands and bounds."""
    found = schema()
    unsure, refuse = found["properties"]["unsure"]["anyOf"], found["properties"]["refuse"]["anyOf"]
    assert unsure == [{"enum": ["allow", "refuse"], "type": "string"}, {"$ref": "#/$defs/RouteTo"}]
    assert [option["type"] for option in refuse] == ["string", "array"]
    assert {"$ref": "#/$defs/RangeConfig"} in found["$defs"]["Conditions"]["additionalProperties"]["anyOf"]
    assert all("description" in value for value in found["properties"].values())


def test_the_reference_page_is_current() -> None:
    """docs/configuration.md is what `guardrail schema --markdown` prints."""
    assert (ROOT / "docs" / "configuration.md").read_text(encoding="utf-8") == markdown()


def test_many_threads_one_guard() -> None:
    """A guard with several policies judges from many threads at once."""
    guard = Guard.from_config(config_of(policies=POLICIES), FixedScorer(trek=by_word))
    wrong: list[str] = []

    def work(key: str, action: Action) -> None:
        for _ in range(200):
            if guard.check("bread", request=Request(api_key=key)).action is not action:
                wrong.append(key)

    threads = [threading.Thread(target=work, args=pair) for pair in [("staff", Action.ALLOW), ("", Action.REFUSE)] * 4]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
