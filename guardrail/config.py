"""guardrail.yaml -> `Config`.

Everything wrong with a file is found before anything starts and told at once, each mistake with line, key, reason and fix.
References (topics, upstreams, adapters) are checked on the raw values, so that they are found although another key is wrong too.
"""

from __future__ import annotations

import difflib
import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, SecretStr, ValidationError, field_validator, model_validator
from pydantic_core import ErrorDetails

from guardrail.adapter import Adapter, find_adapter, load_adapter
from guardrail.errors import AdapterError, ConfigError, Problem
from guardrail.policy import Action, Do, Mode, Policy, Rule
from guardrail.scoring import Band, Thresholds
from guardrail.yaml_lines import Document, Key, read_yaml

CONDITIONS = frozenset({"text_longer_than"})


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class ThresholdsConfig(_Part):
    """Thresholds set by hand; they replace the adapter's fitted ones."""

    not_related: float = Field(ge=0, le=1)
    related: float = Field(ge=0, le=1)

    @model_validator(mode="after")
    def _in_order(self) -> ThresholdsConfig:
        if self.not_related > self.related:
            raise ValueError("not_related must not be greater than related")
        return self


class TopicConfig(_Part):
    """One topic and the adapter that recognises it."""

    adapter: str
    """A bundled name, a folder (relative to the config file) or a Hub id."""
    positive_label: str | None = None
    """For checkpoints of others: which label means that the text belongs to the topic."""
    title: str | None = None
    """How replies call the topic in place of `{topic}`."""
    thresholds: ThresholdsConfig | None = None


class ContextConfig(_Part):
    """How much of the conversation is scored along with a turn."""

    turns: int = Field(default=2, ge=0, le=20)


def _do(value: object) -> object:
    """`allow`, `refuse` or `{route: NAME}` as an action."""
    if value in ("allow", "refuse"):
        return Do(Action(value))
    if isinstance(value, Mapping) and set(value) == {"route"} and isinstance(value["route"], str):
        return Do(Action.ROUTE, to=value["route"])
    raise ValueError("must be allow, refuse or {route: NAME}")


def _replies(value: object) -> object:
    return (value,) if isinstance(value, str) else value


def _bands(value: object) -> frozenset[Band]:
    """`related` or `[related, unsure]` as bands."""
    names = value if isinstance(value, list) else [value]
    try:
        return frozenset(Band(name) for name in names)
    except ValueError as exc:
        raise ValueError("must be related, unsure, not_related or a list of them") from exc


Reply = Annotated[str, Field(min_length=1)]
Replies = Annotated[tuple[Reply, ...], BeforeValidator(_replies), Field(min_length=1)]


class RuleConfig(_Part):
    """`{if: {star_trek: related, text_longer_than: 2000}, do: route, to: large}`."""

    name: str | None = None
    when: dict[str, Any] = Field(alias="if", min_length=1)
    do: Literal["allow", "refuse", "route", "flag"]
    to: str | None = None
    flag: str | None = None
    reply: Replies = ()

    @field_validator("when")
    @classmethod
    def _conditions(cls, when: dict[str, Any]) -> dict[str, Any]:
        length = when.get("text_longer_than", 0)
        if not isinstance(length, int) or isinstance(length, bool) or length < 0:
            raise ValueError("text_longer_than must be a number of characters, 0 or more")
        return {name: value if name in CONDITIONS else _bands(value) for name, value in when.items()}

    @model_validator(mode="after")
    def _complete(self) -> RuleConfig:
        if (self.do == "route") != (self.to is not None):
            raise ValueError("do: route needs to: NAME, and only it has one")
        if self.reply and self.do != "refuse":
            raise ValueError("reply belongs to do: refuse")
        if self.do == "flag" and self.flag is None and self.name is None:
            raise ValueError("do: flag needs flag: NAME")
        return self

    def rule(self, index: int) -> Rule:
        """The rule as the policy knows it; without a name it is called by its place, from 1."""
        name = self.name or f"#{index + 1}"
        return Rule(
            name=name,
            do=None if self.do == "flag" else Do(Action(self.do), to=self.to, replies=self.reply),
            flag=self.flag or (name if self.do == "flag" else None),
            bands={topic: bands for topic, bands in self.when.items() if topic not in CONDITIONS},
            text_longer_than=self.when.get("text_longer_than"),
        )


class UpstreamConfig(_Part):
    """An OpenAI-compatible server behind the proxy; times in seconds."""

    url: str
    api_key: SecretStr | None = None
    """Sent in place of the client's key; without one the client's Authorization header is forwarded."""
    model: str | None = None
    """Replaces the model of routed requests."""
    system: str | None = None
    """Replaces the system prompt of routed requests."""
    connect_timeout: float = Field(default=5, gt=0)
    headers_timeout: float = Field(default=600, gt=0)
    idle_timeout: float = Field(default=120, gt=0)
    """Longest silence between two pieces of a response."""

    @field_validator("url")
    @classmethod
    def _http(cls, url: str) -> str:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.username or parts.query or parts.fragment:
            raise ValueError("must look like https://host/v1, without user, query or fragment")
        return url.rstrip("/")


class ProxyConfig(_Part):
    """Where the proxy listens and what stands behind it."""

    listen: str = "127.0.0.1:8080"
    upstreams: dict[str, UpstreamConfig] = Field(default_factory=dict)
    max_body_bytes: int = Field(default=20 * 2**20, ge=1024)
    max_connections: int = Field(default=1000, ge=1)
    body_timeout: float = Field(default=30, gt=0)

    @field_validator("listen")
    @classmethod
    def _address(cls, listen: str) -> str:
        host, _, port = listen.rpartition(":")
        if not host or not port.isdigit() or int(port) > 65535:
            raise ValueError("must look like 127.0.0.1:8080")
        return listen

    @property
    def host(self) -> str:
        """Address to bind, IPv6 without brackets."""
        return self.listen.rpartition(":")[0].strip("[]")

    @property
    def port(self) -> int:
        """Port to bind; 0 lets the system choose."""
        return int(self.listen.rpartition(":")[2])


class TestConfig(_Part):
    """A sentence and what the policy must do with it."""

    __test__ = False  # not for pytest

    say: str
    after: tuple[str, ...] = ()
    expect: Action


class Config(_Part):
    """guardrail.yaml, complete and consistent. `load_config` makes it."""

    topics: dict[str, TopicConfig] = Field(min_length=1)
    allow: tuple[str, ...] = ()
    deny: tuple[str, ...] = ()
    unsure: Annotated[Do, BeforeValidator(_do)] = Do(Action.ALLOW)
    refuse: Replies = ("I can only help with {topic}.",)
    context: ContextConfig = ContextConfig()
    on_error: Literal["refuse", "allow"] = "refuse"
    mode: Mode = Mode.ENFORCE
    rules: tuple[RuleConfig, ...] = ()
    proxy: ProxyConfig | None = None
    tests: tuple[TestConfig, ...] = ()
    device: Literal["auto", "cpu", "cuda"] = "auto"
    queue_limit: int = Field(default=256, ge=1)
    """Turns that may wait for a score; beyond that a caller is told to come back."""
    score_timeout: float = Field(default=10, gt=0)
    """Seconds after which a turn counts as not scored."""

    def policy(self) -> Policy:
        """The policy that the file describes."""
        return Policy(
            allow=self.allow,
            deny=self.deny,
            unsure=self.unsure,
            replies=self.refuse,
            rules=tuple(rule.rule(index) for index, rule in enumerate(self.rules)),
            on_error=Action(self.on_error),
            mode=self.mode,
            titles={name: topic.title for name, topic in self.topics.items() if topic.title},
            version=self._policy_version(),
        )

    def thresholds(self) -> dict[str, Thresholds]:
        """Thresholds set by hand, by topic."""
        by_hand = {name: topic.thresholds for name, topic in self.topics.items() if topic.thresholds}
        return {name: Thresholds(value.not_related, value.related) for name, value in by_hand.items()}

    def _policy_version(self) -> str:
        """Hash over what can change a decision, so that a log line names the policy that made it."""
        judged = self.model_dump(mode="json", exclude={"proxy", "tests", "device", "queue_limit", "score_timeout"})
        return hashlib.sha256(json.dumps(judged, sort_keys=True).encode()).hexdigest()[:12]


def load_config(path: str | Path) -> tuple[Config, dict[str, Adapter]]:
    """A config file and the adapters that it names, by topic. Raises `ConfigError` with all that is wrong with them."""
    document = read_yaml(Path(path))
    if not isinstance(document.data, dict):
        document.report((), "must be a mapping with at least the key topics", "see `guardrail schema`")
        raise ConfigError(document.problems)
    config = _parsed(document)
    _check_references(document)
    adapters = _load_adapters(document, Path(path).resolve().parent)
    if config is None or document.problems:
        raise ConfigError(sorted(document.problems, key=lambda problem: problem.line or 0))
    return config, adapters


def _parsed(document: Document) -> Config | None:
    try:
        return Config.model_validate(document.data)
    except ValidationError as exc:
        for error in exc.errors():
            document.problems.append(_problem(error, document))
        return None


def _problem(error: ErrorDetails, document: Document) -> Problem:
    key: Key = error["loc"]
    reason = error["msg"].removeprefix("Value error, ")
    fix = ""
    if error["type"] == "extra_forbidden":
        known = _known_keys(key[:-1])
        close = difflib.get_close_matches(str(key[-1]), known, n=1)
        reason = f"unknown key {key[-1]!r}"
        fix = f"did you mean {close[0]!r}?" if close else f"known keys: {', '.join(known)}"
    elif error["type"] == "missing":
        reason, fix = f"the key {key[-1]!r} is missing", f"add `{key[-1]}:`"
    elif "input" in error and isinstance(error["input"], (str, int, float, bool)):
        reason = f"{reason}, found {error['input']!r}"
    document_key = key if key in document.lines else key[:-1]
    name = ".".join(str(part) for part in key)
    return Problem(document.file, document.line(document_key), name, reason, fix)


def _known_keys(path: Key) -> list[str]:
    """Keys that the model at a path knows: the schema is walked, so there is no second list to keep."""
    schema: dict[str, Any] = Config.model_json_schema()
    place: dict[str, Any] = schema
    for part in path:
        place = _resolved(place, schema)
        step = place.get("items") if isinstance(part, int) else place.get("properties", {}).get(part)
        place = step or place.get("additionalProperties") or {}
    return sorted(_resolved(place, schema).get("properties", {}))


def _resolved(place: dict[str, Any], schema: dict[str, Any]) -> dict[str, Any]:
    options = [place, *place.get("anyOf", [])]
    reference = next((option["$ref"] for option in options if "$ref" in option), None)
    return schema["$defs"][reference.rsplit("/", 1)[1]] if reference else place


def _check_references(document: Document) -> None:
    data = document.data
    topics = _names(data.get("topics"))
    proxy = data.get("proxy")
    upstreams = _names(proxy.get("upstreams")) if isinstance(proxy, dict) else None
    for key, name in _topic_references(data):
        if isinstance(name, str) and name not in topics:
            document.report(key, f"unknown topic {name!r}", _suggest(name, topics, "topics"))
    for key, name in _upstream_references(data):
        if upstreams is not None and isinstance(name, str) and name not in upstreams:
            document.report(key, f"unknown upstream {name!r}", _suggest(name, upstreams, "proxy.upstreams"))
    if not data.get("allow") and not data.get("deny") and not data.get("rules"):
        document.report((), "nothing is allowed or denied, so nothing would be guarded", "add `allow: [TOPIC]`")


def _names(value: object) -> list[str]:
    return [str(name) for name in value] if isinstance(value, dict) else []


def _suggest(name: str, known: list[str], where: str) -> str:
    close = difflib.get_close_matches(name, known, n=1)
    return f"did you mean {close[0]!r}?" if close else f"add it under {where}; known: {', '.join(known) or 'none'}"


def _topic_references(data: Mapping[str, Any]) -> Iterator[tuple[Key, object]]:
    for section in ("allow", "deny"):
        names = data.get(section)
        for index, name in enumerate(names if isinstance(names, list) else []):
            yield (section, index), name
    for index, rule in _rules(data):
        conditions = rule.get("if")
        for name in conditions if isinstance(conditions, dict) else {}:
            if name not in CONDITIONS:
                yield ("rules", index, "if", name), name


def _upstream_references(data: Mapping[str, Any]) -> Iterator[tuple[Key, object]]:
    unsure = data.get("unsure")
    if isinstance(unsure, dict):
        yield ("unsure", "route"), unsure.get("route")
    for index, rule in _rules(data):
        yield ("rules", index, "to"), rule.get("to")


def _rules(data: Mapping[str, Any]) -> Iterator[tuple[int, Mapping[str, Any]]]:
    rules = data.get("rules")
    for index, rule in enumerate(rules if isinstance(rules, list) else []):
        if isinstance(rule, dict):
            yield index, rule


def _load_adapters(document: Document, folder: Path) -> dict[str, Adapter]:
    topics = document.data.get("topics")
    adapters: dict[str, Adapter] = {}
    for name, topic in topics.items() if isinstance(topics, dict) else ():
        reference = topic.get("adapter") if isinstance(topic, dict) else None
        if isinstance(reference, str):
            try:
                adapters[name] = load_adapter(find_adapter(reference, folder), topic.get("positive_label"))
            except AdapterError as exc:
                document.report(("topics", name, "adapter"), str(exc))
    return adapters
