"""Who may pass: a pure function from scores to a decision.

`Policy.decide` looks at nothing but its arguments, so recorded scores can be judged again under another policy. The order is:

1. `rules`, top to bottom; the first whose conditions all hold decides (`flag` only marks and goes on),
2. `deny`: a denied topic that is `related` is refused, whatever `allow` says,
3. `allow`: a topic that is `related` passes; without an `allow` list everything passes that was not denied,
4. `unsure`: where 2 or 3 could not tell,
5. refuse.

Allowed topics are read at the lowest score over the parts of a text, denied ones at the highest (see `scoring.Score`).

A guard has several policies where its config says so (`Policies`): which one judges is chosen by the request alone, and another
one may be decided beside it, to be recorded only.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from enum import Enum
from fnmatch import fnmatchcase
from types import MappingProxyType

from guardrail.scoring import Band, Scores, Topic


class Action(str, Enum):
    """What happens to a turn."""

    ALLOW = "allow"
    REFUSE = "refuse"
    ROUTE = "route"


class Mode(str, Enum):
    """Whether a policy acts, or only records what it would have done."""

    ENFORCE = "enforce"
    SHADOW = "shadow"


@dataclass(frozen=True, slots=True)
class Do:
    """An action with what it needs: `route` the upstream's name, `refuse` optionally its own replies."""

    action: Action
    to: str | None = None
    replies: tuple[str, ...] = ()


ALLOW = Do(Action.ALLOW)
REFUSE = Do(Action.REFUSE)


UNSURE = "unsure"
"""`Decision.rule` where the scores could not tell."""
DEFAULT = "default"
"""Name of the policy at the top level of the config."""
RESERVED = frozenset({"allow", "deny", UNSURE, "on_error", "log", "shadow", DEFAULT})
"""What no rule and no policy may be called, because decisions name their own reasons so."""


@dataclass(frozen=True, slots=True)
class Request:
    """What is known about the request besides the text; empty where nobody said. A proxy fills it in, `role` is the guard's."""

    role: str = "user"
    """Who says what is judged: user, or system where the conversation holds no user message."""
    model: str = ""
    upstream: str = ""
    """Where the request would go if no rule routes it elsewhere."""
    api_key: str = ""
    """Name of the client's key, never the key."""
    endpoint: str = ""
    """Path of the API, `/v1/chat/completions`."""
    headers: Mapping[str, str] = field(default_factory=dict)
    """Those headers that the policies ask for (`Policies.headers_used`), lower-case names."""


@dataclass(frozen=True, slots=True)
class Range:
    """Probabilities strictly between two bounds; None is no bound."""

    above: float | None = None
    below: float | None = None

    def holds(self, probability: float) -> bool:
        """Whether a probability lies inside."""
        return (self.above is None or probability > self.above) and (self.below is None or probability < self.below)


@dataclass(frozen=True, slots=True)
class Facts:
    """Conditions on a request; every fact must match one of its patterns (`*` and `?` as in file names)."""

    patterns: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Field of `Request` -> patterns."""
    headers: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Header, lower case -> patterns; a header that was not sent matches none."""

    def hold(self, request: Request) -> bool:
        """Whether all of them match."""
        facts = all(_matches(getattr(request, name), patterns) for name, patterns in self.patterns.items())
        return facts and all(
            name in request.headers and _matches(request.headers[name], patterns) for name, patterns in self.headers.items()
        )


def _matches(value: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatchcase(value, pattern) for pattern in patterns)


ANY = Facts()


@dataclass(frozen=True, slots=True)
class Rule:
    """Conditions that must all hold, and what to do then; `do` is None for a rule that only flags."""

    name: str
    do: Do | None
    flag: str | None = None
    bands: Mapping[str, frozenset[Band]] = field(default_factory=dict)
    text_longer_than: int | None = None
    """In characters of the turn, context apart."""
    text_shorter_than: int | None = None
    ranges: Mapping[str, Range] = field(default_factory=dict)
    facts: Facts = ANY


@dataclass(frozen=True, slots=True)
class Observation:
    """All that a policy may look at; `text_length` in characters, `seed` picks one of several replies."""

    scores: Scores
    topics: Mapping[str, Topic]
    text_length: int = 0
    seed: int = 0
    request: Request = Request()

    def band(self, topic: str, *, strict: bool) -> Band:
        """Band of a topic: of its lowest score when `strict`, of its highest otherwise."""
        score = self.scores[topic]
        return self.topics[topic].thresholds.band(score.low if strict else score.high)


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a shadow policy would have done, beside the decision of the enforced one."""

    policy: str
    action: Action
    rule: str
    reason: str
    policy_version: str = ""


@dataclass(frozen=True, slots=True)
class Decision:
    """What was decided and why; the same value reaches decorator, proxy, log and metrics."""

    action: Action
    reason: str
    rule: str = ""
    reply: str = ""
    """The refusal text; empty unless the action is refuse."""
    route: str | None = None
    flags: tuple[str, ...] = ()
    scores: Mapping[str, float] = field(default_factory=lambda: MappingProxyType({}))
    bands: Mapping[str, Band] = field(default_factory=lambda: MappingProxyType({}))
    shadow: Action | None = None
    """In shadow mode: what an enforcing policy would have done."""
    policy: str = DEFAULT
    """Name of the policy that decided."""
    beside: Verdict | None = None
    """What the shadow policy beside it says."""
    escalated: str = ""
    """The stronger scorer that was asked and, unless its scores were used, why its answer is missing."""
    error: str | None = None
    """Why the guard could not score; then `on_error` decided."""
    retry_after: float | None = None
    """Seconds after which an overloaded guard may be asked again."""
    policy_version: str = ""
    adapter_versions: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    timings: Mapping[str, float] = field(default_factory=lambda: MappingProxyType({}))
    """Milliseconds by stage."""

    @property
    def allowed(self) -> bool:
        """Whether the call may go on, here or by another route."""
        return self.action is not Action.REFUSE


@dataclass(frozen=True, slots=True)
class Escalate:
    """Where the scores cannot tell, a stronger scorer is asked; past the deadline the first verdict stands."""

    to: str
    deadline_ms: float


@dataclass(frozen=True, slots=True)
class Policy:
    """The rules; see the module's docstring for their order."""

    allow: tuple[str, ...] = ()
    deny: tuple[str, ...] = ()
    unsure: Do = ALLOW
    escalate: Escalate | None = None
    replies: tuple[str, ...] = ("I can't help with that here.",)
    rules: tuple[Rule, ...] = ()
    on_error: Action = Action.REFUSE
    mode: Mode = Mode.ENFORCE
    titles: Mapping[str, str] = field(default_factory=dict)
    """Topic name -> how it is called in a reply; the name with spaces where it is missing."""
    version: str = ""
    name: str = DEFAULT

    def decide(self, seen: Observation) -> Decision:
        """The decision on one observation. Pure; `KeyError` if a topic of the policy was not scored."""
        bands = _bands(seen) if self.rules else {}
        flags = tuple(rule.flag for rule in self.rules if rule.flag and _holds(rule, seen, bands))
        do, reason, rule = self._verdict(seen, bands)
        return self._decision(do, reason, rule, flags, seen)

    def decide_unscored(self, error: str, retry_after: float | None = None, seed: int = 0) -> Decision:
        """The decision on a turn that the guard could not score: `on_error`, in shadow mode allow."""
        shadowed = self.mode is Mode.SHADOW
        action = Action.ALLOW if shadowed else self.on_error
        return Decision(
            action=action,
            reason=f"guard failed, on_error: {self.on_error.value}",
            rule="on_error",
            reply=self._reply(REFUSE, seed) if action is Action.REFUSE else "",
            shadow=self.on_error if shadowed else None,
            error=error,
            retry_after=retry_after,
            policy=self.name,
            policy_version=self.version,
        )

    def refuse_unlogged(self, fault: str, seed: int = 0) -> Decision:
        """The decision where `log.on_full: refuse` and the decision log cannot be written; in shadow mode allow."""
        decision = self.decide_unscored(fault, None, seed)
        if self.mode is Mode.ENFORCE:
            decision = replace(decision, action=Action.REFUSE, reply=self._reply(REFUSE, seed))
        return replace(decision, rule="log", reason="the decision log cannot be written, on_full: refuse")

    def verdict(self, seen: Observation) -> Verdict:
        """What this policy would do, as it is recorded beside the decision of another one."""
        do, reason, rule = self._verdict(seen, _bands(seen))
        return Verdict(self.name, do.action, rule, reason, self.version)

    def _verdict(self, seen: Observation, bands: Bands) -> tuple[Do, str, str]:
        for rule in self.rules:
            if rule.do is not None and _holds(rule, seen, bands):
                return rule.do, f"rule {rule.name!r} holds", rule.name
        doubt = ""
        for topic in self.deny:
            band = seen.band(topic, strict=False)
            if band is Band.RELATED:
                return REFUSE, f"{topic} is denied", f"deny: {topic}"
            if band is Band.UNSURE:
                doubt = doubt or f"unsure whether the text is about {topic}, which is denied"
        return self._verdict_of_allow(seen, doubt)

    def _verdict_of_allow(self, seen: Observation, doubt: str) -> tuple[Do, str, str]:
        bands = {topic: seen.band(topic, strict=True) for topic in self.allow}
        related = next((topic for topic, band in bands.items() if band is Band.RELATED), None)
        if not doubt and related is not None:
            return ALLOW, f"{related} is allowed", f"allow: {related}"
        if not doubt and not self.allow:
            return ALLOW, "no denied topic", "deny"
        unsure = next((topic for topic, band in bands.items() if band is Band.UNSURE), None)
        if doubt and (related or unsure or not self.allow):
            return self.unsure, doubt, UNSURE
        if unsure is not None:
            return self.unsure, f"unsure whether the text is about {unsure}", UNSURE
        return REFUSE, f"none of the allowed topics: {', '.join(self.allow)}", "allow"

    def _decision(self, do: Do, reason: str, rule: str, flags: tuple[str, ...], seen: Observation) -> Decision:
        shadowed = self.mode is Mode.SHADOW
        action = Action.ALLOW if shadowed else do.action
        return Decision(
            action=action,
            reason=reason,
            rule=rule,
            reply=self._reply(do, seen.seed) if action is Action.REFUSE else "",
            route=do.to if action is Action.ROUTE else None,
            flags=flags,
            scores=MappingProxyType({topic: self._read(topic, seen) for topic in seen.scores}),
            bands=MappingProxyType({t: seen.band(t, strict=t not in self.deny) for t in seen.scores}),
            shadow=do.action if shadowed else None,
            policy=self.name,
            policy_version=self.version,
            adapter_versions=MappingProxyType({name: topic.version for name, topic in seen.topics.items()}),
        )

    def _read(self, topic: str, seen: Observation) -> float:
        score = seen.scores[topic]
        return score.high if topic in self.deny else score.low

    def _reply(self, do: Do, seed: int) -> str:
        replies = do.replies or self.replies
        names = [self.titles.get(topic, topic.replace("_", " ")) for topic in self.allow]
        return replies[seed % len(replies)].replace("{topic}", " or ".join(names) or "that")

    def tried(self, seen: Observation) -> Iterator[tuple[str, bool]]:
        """Each rule's name and whether it holds, in order, up to the one that decides."""
        bands = _bands(seen)
        for rule in self.rules:
            holds = _holds(rule, seen, bands)
            yield rule.name, holds
            if holds and rule.do is not None:
                return

    def topics_used(self) -> Iterator[str]:
        """Every topic that some part of the policy reads."""
        yield from self.allow
        yield from self.deny
        for rule in self.rules:
            yield from rule.bands
            yield from rule.ranges

    def routes_used(self) -> Iterator[str]:
        """Every upstream that some part of the policy routes to."""
        yield from (do.to for do in (self.unsure, *(rule.do for rule in self.rules)) if do is not None and do.to is not None)


Bands = Mapping[str, tuple[Band, Band]]
"""Topic -> band of its lowest and of its highest score; read once a decision, because 20 rules would read them 20 times."""


def _bands(seen: Observation) -> Bands:
    limits = {name: topic.thresholds for name, topic in seen.topics.items()}
    return {name: (limits[name].band(score.low), limits[name].band(score.high)) for name, score in seen.scores.items()}


def _holds(rule: Rule, seen: Observation, bands: Bands) -> bool:
    """A rule that lets pass needs all parts of the text in its bands, one that refuses or flags only one: cautious both ways."""
    if rule.text_longer_than is not None and seen.text_length <= rule.text_longer_than:
        return False
    if rule.text_shorter_than is not None and seen.text_length >= rule.text_shorter_than:
        return False
    if rule.facts is not ANY and not rule.facts.hold(seen.request):
        return False
    passes = rule.do is not None and rule.do.action is not Action.REFUSE
    for topic, wanted in rule.bands.items():
        low, high = bands[topic]
        if not _enough(passes, low in wanted, high in wanted):
            return False
    for topic, span in rule.ranges.items():
        score = seen.scores[topic]
        if not _enough(passes, span.holds(score.low), span.holds(score.high)):
            return False
    return True


def _enough(passes: bool, lowest: bool, highest: bool) -> bool:
    return (lowest and highest) if passes else (lowest or highest)


@dataclass(frozen=True, slots=True)
class Scoped:
    """A named policy and the requests that it judges; `facts` is None for one that only runs in the shadow of others."""

    policy: Policy
    facts: Facts | None = None


@dataclass(frozen=True, slots=True)
class Policies:
    """All policies of a guard; `shadow` is decided beside the one that a request chooses."""

    default: Policy
    named: tuple[Scoped, ...] = ()
    shadow: Policy | None = None

    def select(self, request: Request) -> Policy:
        """The first named policy whose conditions on the request hold, else the default one."""
        return next((scoped.policy for scoped in self.named if scoped.facts and scoped.facts.hold(request)), self.default)

    def decide(self, seen: Observation) -> Decision:
        """The decision of the policy that the request chooses, with the shadow policy's verdict beside it. Pure."""
        decision = self.select(seen.request).decide(seen)
        return decision if self.shadow is None else replace(decision, beside=self.shadow.verdict(seen))

    def every(self) -> Iterator[Policy]:
        """Each policy once."""
        yield self.default
        yield from (scoped.policy for scoped in self.named)

    def topics_used(self) -> frozenset[str]:
        """Every topic that some policy reads."""
        return frozenset(topic for policy in self.every() for topic in policy.topics_used())

    def routes_used(self) -> frozenset[str]:
        """Every upstream that some policy routes to."""
        return frozenset(name for policy in self.every() for name in policy.routes_used())

    def headers_used(self) -> frozenset[str]:
        """Every header that some condition reads; a proxy passes on no others."""
        facts = [scoped.facts for scoped in self.named if scoped.facts] + [r.facts for p in self.every() for r in p.rules]
        return frozenset(name for found in facts for name in found.headers)
