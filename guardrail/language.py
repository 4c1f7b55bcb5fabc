"""The policy language: the keys of guardrail.yaml that say who may pass, as pydantic models, and the `Policy` that they mean.

allow, deny, unsure, escalate, refuse, rules, on_error, mode      at the top level and in each of `policies:`
if: {star_trek: related, small_talk: {below: 0.2}, text_longer_than: 2000, model: gpt-*}      conditions of a rule
for: {api_key: staff}                                             requests that a named policy judges
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from guardrail.policy import ANY, RESERVED, Action, Do, Escalate, Facts, Mode, Policy, Range, Request, Rule
from guardrail.scoring import Band


class Part(BaseModel):
    """A mapping of the file: unknown keys are errors, and the words under a field describe it in the schema."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class RouteTo(Part):
    """`{route: NAME}`: the request goes to another upstream."""

    route: str
    """Name of an upstream."""


Unsure = Literal["allow", "refuse"] | RouteTo


def _unsure(value: object) -> Unsure:
    if value == "allow" or value == "refuse":
        return value
    if isinstance(value, Mapping) and set(value) == {"route"} and isinstance(value["route"], str):
        return RouteTo(route=value["route"])
    raise ValueError("must be allow, refuse or {route: NAME}")


def _words(value: object) -> tuple[str, ...]:
    """One text or a list of texts."""
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, (list, tuple)) or not all(isinstance(text, str) and text for text in texts):
        raise ValueError("must be a text or a list of texts, none of them empty")
    if not texts:
        raise ValueError("must hold at least 1 text")
    return tuple(texts)


OneOrMore = str | list[str]
Replies = Annotated[tuple[str, ...], BeforeValidator(_words, json_schema_input_type=OneOrMore)]
Patterns = Annotated[tuple[str, ...], BeforeValidator(_words, json_schema_input_type=OneOrMore)]
BandName = Literal["related", "unsure", "not_related"]


class RangeConfig(Part):
    """A condition on the probability itself; both bounds are exclusive."""

    above: float | None = Field(default=None, ge=0, le=1, strict=True)
    """The probability is greater."""
    below: float | None = Field(default=None, ge=0, le=1, strict=True)
    """The probability is smaller."""


TopicCondition = tuple[Band, ...] | RangeConfig


def _topic_condition(value: object) -> TopicCondition:
    """`related`, `[related, unsure]`, `{above: 0.9}` or `{above: 0.2, below: 0.9}`."""
    if isinstance(value, Mapping):
        return _range(value)
    names = value if isinstance(value, (list, tuple)) else [value]
    try:
        bands = {Band(name) for name in names}
    except ValueError:
        bands = set()
    if not bands:
        raise ValueError("must be related, unsure, not_related, a list of them, or {above: 0.9}")
    return tuple(sorted(bands, key=lambda band: band.value))


def _range(value: Mapping[Any, Any]) -> RangeConfig:
    try:
        found = RangeConfig.model_validate(value)
    except ValidationError as exc:
        raise ValueError("must hold above and below, numbers from 0 to 1: {above: 0.9}") from exc
    low, high = found.above, found.below
    if (low is None and high is None) or (low is not None and high is not None and low >= high):
        raise ValueError("must hold above, below, or both with above smaller than below")
    return found


Topical = Annotated[
    TopicCondition, BeforeValidator(_topic_condition, json_schema_input_type=BandName | list[BandName] | RangeConfig)
]
FACTS = ("model", "upstream", "api_key", "endpoint")


class RequestConditions(Part):
    """Conditions on a request. Each takes a text or a list of them; `*` and `?` stand for any text and any character."""

    model: Patterns = ()
    """Model that the client asks for."""
    upstream: Patterns = ()
    """Upstream that the request would go to."""
    api_key: Patterns = ()
    """Name of the client's key, from `proxy.api_keys`."""
    endpoint: Patterns = ()
    """Path of the API, `/v1/chat/completions`."""
    headers: dict[str, Patterns] = Field(default_factory=dict)
    """Request headers by name; one that was not sent fails the condition."""

    def facts(self) -> Facts:
        """As the policy knows them."""
        patterns = {name: getattr(self, name) for name in (*FACTS, "role") if getattr(self, name, ())}
        headers = {name.lower(): values for name, values in self.headers.items()}
        return Facts(patterns, headers) if patterns or headers else ANY


class Conditions(RequestConditions):
    """Conditions of a rule; all must hold. A topic's name takes a band, a list of bands, or bounds of its probability."""

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, Topical] = Field(init=False)

    text_longer_than: int | None = Field(default=None, ge=0, strict=True)
    """In characters of the user's turn, context apart."""
    text_shorter_than: int | None = Field(default=None, ge=1, strict=True)
    """In characters of the user's turn, context apart."""
    role: Patterns = ()
    """Who says what is judged: user, or system where a conversation holds no user message."""

    @model_validator(mode="after")
    def _some(self) -> Conditions:
        if not self.model_fields_set and not self.__pydantic_extra__:
            raise ValueError("must hold at least one condition")
        return self

    def topics(self) -> Mapping[str, TopicCondition]:
        """Conditions on topics."""
        return self.__pydantic_extra__


CONDITIONS = frozenset(Conditions.model_fields)
"""Names of conditions, which no topic may have."""


class RuleConfig(Part):
    """`{if: {star_trek: related, text_longer_than: 2000}, do: route, to: large}`."""

    name: str | None = None
    """Named in decisions, logs and diffs; without one a rule is called by its place: `#1`."""
    when: Conditions = Field(alias="if")
    """All of these must hold."""
    do: Literal["allow", "refuse", "route", "flag"]
    """`flag` only marks the decision, and the next rules are tried."""
    to: str | None = None
    """Upstream, with `do: route`."""
    flag: str | None = None
    """Marks the decision; may go with any action."""
    reply: Replies = ()
    """Text or texts of the refusal, with `do: refuse`."""

    @model_validator(mode="after")
    def _complete(self) -> RuleConfig:
        if (self.do == "route") != (self.to is not None):
            raise ValueError("do: route needs to: NAME, and only it has one")
        if self.reply and self.do != "refuse":
            raise ValueError("reply belongs to do: refuse")
        if self.do == "flag" and self.flag is None and self.name is None:
            raise ValueError("do: flag needs flag: NAME")
        if self.name in RESERVED or (self.name or "").startswith(("allow:", "deny:", "#")):
            raise ValueError(f"a rule cannot be called {self.name!r}, decisions use that name themselves")
        return self

    def rule(self, index: int) -> Rule:
        """The rule as the policy knows it."""
        name = self.name or f"#{index + 1}"
        topics = self.when.topics()
        return Rule(
            name=name,
            do=None if self.do == "flag" else Do(Action(self.do), to=self.to, replies=self.reply),
            flag=self.flag or (name if self.do == "flag" else None),
            bands={topic: frozenset(found) for topic, found in topics.items() if not isinstance(found, RangeConfig)},
            ranges={t: Range(found.above, found.below) for t, found in topics.items() if isinstance(found, RangeConfig)},
            text_longer_than=self.when.text_longer_than,
            text_shorter_than=self.when.text_shorter_than,
            facts=self.when.facts(),
        )


class EscalateConfig(Part):
    """A turn that the scores cannot tell is scored again by a stronger scorer; past the deadline the first verdict stands."""

    to: str
    """One of `scorers`."""
    deadline_ms: float = Field(default=80, gt=0)
    """Longest wait for the stronger scorer."""


class PolicyKeys(Part):
    """What a policy says."""

    allow: tuple[str, ...] = ()
    """Topics that pass; everything else is refused. Without it everything passes that is not denied."""
    deny: tuple[str, ...] = ()
    """Topics that are refused, even if they are allowed too."""
    unsure: Annotated[Unsure, BeforeValidator(_unsure, json_schema_input_type=Unsure)] = "allow"
    """What happens where the scores cannot tell: allow, refuse or {route: NAME}."""
    escalate: EscalateConfig | None = None
    """Ask a stronger scorer before `unsure` applies."""
    refuse: Replies = ("I can only help with {topic}.",)
    """The refusal: a text, or a list of which each turn gets one; `{topic}` stands for the allowed topics."""
    rules: tuple[RuleConfig, ...] = ()
    """Tried in order before allow and deny; the first that holds decides."""
    on_error: Literal["refuse", "allow"] = "refuse"
    """What happens when the guard cannot score."""
    mode: Mode = Mode.ENFORCE
    """`shadow` decides and records, and lets everything pass."""

    @model_validator(mode="after")
    def _distinct(self) -> PolicyKeys:
        names = [rule.name for rule in self.rules if rule.name is not None]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise ValueError(f"two rules are called {twice!r}: give each its own name")
        return self

    def policy_called(self, name: str, titles: Mapping[str, str], version: str) -> Policy:
        """The policy that the keys describe."""
        routed = Do(Action.ROUTE, to=self.unsure.route) if isinstance(self.unsure, RouteTo) else None
        return Policy(
            allow=self.allow,
            deny=self.deny,
            unsure=routed or Do(Action(self.unsure)),
            escalate=Escalate(self.escalate.to, self.escalate.deadline_ms) if self.escalate else None,
            replies=self.refuse,
            rules=tuple(rule.rule(index) for index, rule in enumerate(self.rules)),
            on_error=Action(self.on_error),
            mode=self.mode,
            titles=titles,
            version=version,
            name=name,
        )


def _without_defaults(schema: dict[str, Any]) -> None:
    """What a named policy leaves out is no default of its own."""
    for value in schema["properties"].values():
        value.pop("default", None)


class NamedPolicy(PolicyKeys):
    """A policy beside the one at the top level; a key that it leaves out is taken from there."""

    model_config = ConfigDict(json_schema_extra=_without_defaults)

    requests: RequestConditions | None = Field(default=None, alias="for")
    """Which requests it judges. The first policy that fits is taken; without `for` it can only be the `shadow`."""

    def filled(self, base: PolicyKeys) -> PolicyKeys:
        """Its own keys, and those of the top level for the others."""
        given = {key: getattr(self if key in self.model_fields_set else base, key) for key in PolicyKeys.model_fields}
        return PolicyKeys.model_construct(**given)


class Given(Part):
    """A request, for a policy test; what is left out is empty."""

    model: str = ""
    """Model that the client asks for."""
    upstream: str = ""
    """Upstream that the request would go to."""
    api_key: str = ""
    """Name of a client's key."""
    endpoint: str = ""
    """Path of the API."""
    headers: dict[str, str] = Field(default_factory=dict)
    """Request headers."""

    def request(self) -> Request:
        """As the policy knows it."""
        headers = {name.lower(): value for name, value in self.headers.items()}
        return Request(model=self.model, upstream=self.upstream, api_key=self.api_key, endpoint=self.endpoint, headers=headers)
