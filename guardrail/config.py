"""guardrail.yaml -> `Config`.

Everything wrong with a file is found before anything starts and told at once, each mistake with line, key, reason and fix.
References (topics, upstreams, adapters) are checked on the raw values, so that they are found although another key is wrong too.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import secrets
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

from pydantic import Field, SecretStr, ValidationError, field_validator, model_validator
from pydantic_core import ErrorDetails

from guardrail.adapter import Adapter, find_adapter, load_adapter
from guardrail.errors import AdapterError, ConfigError, Problem
from guardrail.language import CONDITIONS, Given, NamedPolicy, Part, PolicyKeys
from guardrail.policy import DEFAULT, RESERVED, Action, Policies, Policy, Scoped
from guardrail.scoring import Thresholds
from guardrail.yaml_lines import Document, Key, dotted, read_yaml

OPERATIONS = {"proxy", "tests", "device", "queue_limit", "score_timeout", "log", "policies", "shadow"}
"""Keys that cannot change what the policy at the top level decides."""


class ThresholdsConfig(Part):
    """Thresholds set by hand; they replace the adapter's fitted ones."""

    not_related: float = Field(ge=0, le=1)
    """Below it a text does not belong to the topic."""
    related: float = Field(ge=0, le=1)
    """From it upwards a text belongs to the topic; between the two nobody knows."""

    @model_validator(mode="after")
    def _in_order(self) -> ThresholdsConfig:
        if self.not_related > self.related:
            raise ValueError("not_related must not be greater than related")
        return self


class TopicConfig(Part):
    """One topic and the adapter that recognises it."""

    adapter: str
    """A bundled name, a folder (relative to the config file) or a Hub id."""
    positive_label: str | None = None
    """For checkpoints of others: which label means that the text belongs to the topic."""
    title: str | None = None
    """How replies call the topic in place of `{topic}`."""
    thresholds: ThresholdsConfig | None = None
    """Instead of the adapter's fitted ones."""


class ContextConfig(Part):
    """How much of the conversation is scored along with a turn."""

    turns: int = Field(default=2, ge=0, le=20)
    """Earlier user turns; refused ones do not count. The adapters are trained with 2."""


class UpstreamConfig(Part):
    """An OpenAI-compatible server behind the proxy; times in seconds."""

    url: str
    """Up to and with the version: `https://host/v1`."""
    api_key: SecretStr | None = None
    """Sent in place of the client's key; without one the client's Authorization header is forwarded."""
    model: str | None = None
    """Replaces the model of routed requests."""
    system: str | None = None
    """Replaces the system prompt of routed requests."""
    connect_timeout: float = Field(default=5, gt=0)
    """In seconds."""
    headers_timeout: float = Field(default=600, gt=0)
    """Longest wait for the begin of a response."""
    idle_timeout: float = Field(default=120, gt=0)
    """Longest silence between two pieces of a response."""

    @field_validator("url")
    @classmethod
    def _http(cls, url: str) -> str:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.username or parts.query or parts.fragment:
            raise ValueError("must look like https://host/v1, without user, query or fragment")
        return url.rstrip("/")


class ProxyConfig(Part):
    """Where the proxy listens and what stands behind it."""

    listen: str = "127.0.0.1:8080"
    """Address and port."""
    upstreams: dict[str, UpstreamConfig] = Field(default_factory=dict)
    """Servers by name; requests go to `default` unless a rule routes them."""
    max_body_bytes: int = Field(default=20 * 2**20, ge=1024)
    """Larger requests are refused."""
    max_connections: int = Field(default=1000, ge=1)
    """To each upstream."""
    body_timeout: float = Field(default=30, gt=0)
    """Seconds in which a request's body must have arrived."""
    api_keys: dict[str, SecretStr] = Field(default_factory=dict)
    """Names of the clients' keys, for conditions on `api_key`."""

    def caller(self, token: str) -> str:
        """Name of a client's key (the token after `Bearer`); empty for an unknown one. Compared in constant time."""
        given = token.encode()
        matches = [name for name, key in self.api_keys.items() if secrets.compare_digest(key.get_secret_value().encode(), given)]
        return matches[0] if matches else ""

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


class TestConfig(Part):
    """A sentence and what the policy must do with it."""

    __test__ = False  # not for pytest

    say: str
    """What the user says."""
    after: tuple[str, ...] = ()
    """What the user said before, oldest first; each was answered."""
    given: Given = Given()
    """The request that it comes with."""
    expect: Action
    """allow, refuse or route."""


class LogConfig(Part):
    """The decision log: JSON lines, chained by hashes."""

    path: str
    """Relative to the config file. One process writes to a log."""
    text: bool = False
    """Log the words too; without it a line holds no text."""
    key: SecretStr | None = None
    """Key of the texts' hashes (HMAC-SHA-256), to recognise a text over restarts; without it each start has its own."""
    max_bytes: int = Field(default=100 * 2**20, ge=4096)
    """Size at which the file is rotated to `PATH.1`."""
    keep: int = Field(default=10, ge=1, le=1000)
    """Rotated files that are kept."""
    on_full: Literal["ignore", "refuse"] = "ignore"
    """While the log cannot be written: go on, or refuse every turn."""

    def options(self) -> dict[str, Any]:
        """Keyword arguments of `DecisionLog`."""
        key = self.key.get_secret_value().encode() if self.key else None
        return {"text": self.text, "key": key, "max_bytes": self.max_bytes, "keep": self.keep}


class Config(PolicyKeys):
    """guardrail.yaml, complete and consistent. `load_config` makes it."""

    topics: dict[str, TopicConfig] = Field(min_length=1)
    """Every topic that a policy names, and the adapter that recognises it."""
    context: ContextConfig = ContextConfig()
    """The conversation that is scored along with a turn."""
    history: Literal["drop_refused", "keep"] = "drop_refused"
    """Whether refused turns and their replies are left out of what is forwarded; they are never context of a later turn."""
    policies: dict[str, NamedPolicy] = Field(default_factory=dict)
    """Policies for some requests only, or for the shadow; the first whose `for` fits judges."""
    shadow: str | None = None
    """One of `policies`, decided and recorded beside the one that is enforced."""
    scorers: dict[str, dict[str, TopicConfig]] = Field(default_factory=dict)
    """Stronger scorers by name, each with its own adapters for some of the topics."""
    proxy: ProxyConfig | None = None
    """For `guardrail serve`."""
    log: LogConfig | None = None
    """The decision log; without it nothing is logged."""
    tests: tuple[TestConfig, ...] = ()
    """Run by `guardrail check` and at start."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where the adapters run."""
    queue_limit: int = Field(default=256, ge=1)
    """Turns that may wait for a score; beyond that a caller is told to come back."""
    score_timeout: float = Field(default=10, gt=0)
    """Seconds after which a turn counts as not scored."""

    def policy(self) -> Policy:
        """The policy at the top level."""
        return self.policy_called(DEFAULT, self._titles(), self._version(self))

    def policies_in_force(self) -> Policies:
        """All policies that the file describes."""
        named = {name: self._named(name, keys) for name, keys in self.policies.items()}
        scoped = [Scoped(named[name], keys.requests.facts() if keys.requests else None) for name, keys in self.policies.items()]
        return Policies(self.policy(), tuple(scoped), named[self.shadow] if self.shadow else None)

    def thresholds(self) -> dict[str, Thresholds]:
        """Thresholds set by hand, by topic."""
        return _by_hand(self.topics)

    def stronger_thresholds(self) -> dict[str, dict[str, Thresholds]]:
        """Thresholds set by hand, by stronger scorer and topic."""
        return {scorer: _by_hand(topics) for scorer, topics in self.scorers.items()}

    def _titles(self) -> dict[str, str]:
        return {name: topic.title for name, topic in self.topics.items() if topic.title}

    def _named(self, name: str, keys: NamedPolicy) -> Policy:
        filled = keys.filled(self)
        return filled.policy_called(name, self._titles(), self._version(filled))

    def _version(self, keys: PolicyKeys) -> str:
        """Hash over what can change a decision, so that a log line names the policy that made it."""
        judged = self.model_dump(mode="json", exclude={*OPERATIONS, *PolicyKeys.model_fields})
        judged |= {key: value for key, value in keys.model_dump(mode="json").items() if key in PolicyKeys.model_fields}
        return hashlib.sha256(json.dumps(judged, sort_keys=True).encode()).hexdigest()[:12]


def _by_hand(topics: Mapping[str, TopicConfig]) -> dict[str, Thresholds]:
    values = {name: topic.thresholds for name, topic in topics.items() if topic.thresholds}
    return {name: Thresholds(value.not_related, value.related) for name, value in values.items()}


def load_config(path: str | Path) -> tuple[Config, dict[str, Adapter]]:
    """A config file and the adapters that it names, by topic. Raises `ConfigError` with all that is wrong with them."""
    document = _read(path)
    config = _parsed(document)
    _check_references(document)
    adapters = _load_adapters(document, Path(path).resolve().parent)
    return _sound(config, document), adapters


def read_config(path: str | Path) -> Config:
    """A config file without its adapters, which need not be there. Raises `ConfigError` with all that is wrong with it."""
    document = _read(path)
    config = _parsed(document)
    _check_references(document)
    return _sound(config, document)


def _read(path: str | Path) -> Document:
    document = read_yaml(Path(path))
    if not isinstance(document.data, dict):
        document.report((), "must be a mapping with at least the key topics", "see `guardrail schema`")
        raise ConfigError(document.problems)
    return document


def _sound(config: Config | None, document: Document) -> Config:
    if config is None or document.problems:
        raise ConfigError(sorted(document.problems, key=lambda problem: problem.line or 0))
    return config


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
    return Problem(document.file, document.line(document_key), dotted(key), reason, fix)


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
    """Every name that stands for something else: topics, upstreams, policies, scorers, clients' keys."""
    data = document.data
    topics, policies, scorers = _names(data.get("topics")), _names(data.get("policies")), _names(data.get("scorers"))
    _check(document, _topic_references(data), "topic", topics, "topics")
    _check(document, [(("shadow",), data.get("shadow"))], "policy", policies, "policies")
    _check(document, _escalations(data), "scorer", scorers, "scorers")
    proxy = data.get("proxy")
    if isinstance(proxy, dict):
        _check(document, _upstream_references(data), "upstream", _names(proxy.get("upstreams")), "proxy.upstreams")
        _check(document, _key_references(data), "client key", _names(proxy.get("api_keys")), "proxy.api_keys")
    for section, names, taken in (("topics", topics, CONDITIONS), ("policies", policies, RESERVED)):
        for name in names:
            if name in taken:
                document.report((section, name), f"the name {name!r} has a meaning of its own", "choose another name")
    if not any(data.get(key) for key in ("allow", "deny", "rules")):
        document.report((), "nothing is allowed or denied, so nothing would be guarded", "add `allow: [TOPIC]`")


def _check(document: Document, references: Iterable[tuple[Key, object]], what: str, known: list[str], where: str) -> None:
    for key, name in references:
        if isinstance(name, str) and name not in known:
            document.report(key, f"unknown {what} {name!r}", _suggest(name, known, where))


def _names(value: object) -> list[str]:
    return [str(name) for name in value] if isinstance(value, dict) else []


def _suggest(name: str, known: list[str], where: str) -> str:
    close = difflib.get_close_matches(name, [*known, *CONDITIONS] if where == "topics" else known, n=1)
    return f"did you mean {close[0]!r}?" if close else f"add it under {where}; known: {', '.join(known) or 'none'}"


def _policies(data: Mapping[str, Any]) -> Iterator[tuple[Key, Mapping[str, Any]]]:
    """The place of each policy and its raw keys."""
    yield (), data
    named = data.get("policies")
    for name, keys in named.items() if isinstance(named, dict) else ():
        if isinstance(keys, dict):
            yield ("policies", name), keys


def _topic_references(data: Mapping[str, Any]) -> Iterator[tuple[Key, object]]:
    for place, policy in _policies(data):
        for section in ("allow", "deny"):
            names = policy.get(section)
            for index, name in enumerate(names if isinstance(names, list) else []):
                yield (*place, section, index), name
        for key, conditions in _conditions(place, policy):
            yield from (((*key, name), name) for name in conditions if name not in CONDITIONS)
    scorers = data.get("scorers")
    for scorer, topics in scorers.items() if isinstance(scorers, dict) else ():
        yield from ((("scorers", scorer, name), name) for name in _names(topics))


def _upstream_references(data: Mapping[str, Any]) -> Iterator[tuple[Key, object]]:
    for place, policy in _policies(data):
        unsure = policy.get("unsure")
        if isinstance(unsure, dict):
            yield (*place, "unsure", "route"), unsure.get("route")
        for key, rule in _rules(place, policy):
            yield (*key, "to"), rule.get("to")


def _escalations(data: Mapping[str, Any]) -> Iterator[tuple[Key, object]]:
    for place, policy in _policies(data):
        escalate = policy.get("escalate")
        if isinstance(escalate, dict):
            yield (*place, "escalate", "to"), escalate.get("to")


def _key_references(data: Mapping[str, Any]) -> Iterator[tuple[Key, object]]:
    """Names of client keys in conditions; a pattern may stand for any."""
    for place, policy in _policies(data):
        scopes = [((*place, "for"), policy.get("for")), *_conditions(place, policy)]
        for key, conditions in scopes:
            names = conditions.get("api_key") if isinstance(conditions, dict) else None
            for name in names if isinstance(names, list) else [names]:
                if isinstance(name, str) and not set("*?[") & set(name):
                    yield (*key, "api_key"), name


def _conditions(place: Key, policy: Mapping[str, Any]) -> Iterator[tuple[Key, Mapping[str, Any]]]:
    for key, rule in _rules(place, policy):
        conditions = rule.get("if")
        if isinstance(conditions, dict):
            yield (*key, "if"), conditions


def _rules(place: Key, policy: Mapping[str, Any]) -> Iterator[tuple[Key, Mapping[str, Any]]]:
    rules = policy.get("rules")
    for index, rule in enumerate(rules if isinstance(rules, list) else []):
        if isinstance(rule, dict):
            yield (*place, "rules", index), rule


def _load_adapters(document: Document, folder: Path) -> dict[str, Adapter]:
    """The adapters of `topics`; those of `scorers` are only looked at."""
    scorers = document.data.get("scorers")
    for scorer, topics in scorers.items() if isinstance(scorers, dict) else ():
        _load_topics(document, ("scorers", scorer), topics, folder)
    return _load_topics(document, ("topics",), document.data.get("topics"), folder)


def _load_topics(document: Document, place: Key, topics: object, folder: Path) -> dict[str, Adapter]:
    adapters: dict[str, Adapter] = {}
    for name, topic in topics.items() if isinstance(topics, dict) else ():
        reference = topic.get("adapter") if isinstance(topic, dict) else None
        if isinstance(reference, str):
            try:
                adapters[name] = load_adapter(find_adapter(reference, folder), topic.get("positive_label"))
            except AdapterError as exc:
                document.report((*place, name, "adapter"), str(exc))
    return adapters


def load_stronger(config: Config, folder: Path) -> dict[str, dict[str, Adapter]]:
    """The adapters of each of `scorers`. Raises `AdapterError`."""
    return {
        scorer: {name: load_adapter(find_adapter(topic.adapter, folder), topic.positive_label) for name, topic in topics.items()}
        for scorer, topics in config.scorers.items()
    }
