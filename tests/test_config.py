"""A wrong config is told whole, with file, line, key, reason and fix, before anything starts."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from guardrail.adapter import Base, Manifest, save_manifest
from guardrail.config import Config, load_config
from guardrail.errors import ConfigError
from guardrail.policy import Action, Mode
from guardrail.scoring import Band, Thresholds

Write = Callable[[str], Path]
BASE = "topics: {trek: {adapter: ./trek}}\nallow: [trek]\n"
GOOD = """\
topics:
  trek: {adapter: ./trek, title: Star Trek, thresholds: {not_related: 0.2, related: 0.6}}
allow: [trek]
unsure: {route: large}
refuse: ["No.", "Only {topic}."]
context: {turns: 3}
mode: shadow
rules:
  - {if: {trek: [related, unsure], text_longer_than: 2000}, do: route, to: large}
  - {name: odd, if: {trek: not_related}, do: flag}
proxy:
  listen: 127.0.0.1:0
  upstreams:
    default: {url: "http://127.0.0.1:9/v1/", api_key: "${TREK_KEY}"}
    large: {url: "https://example.org/v1", model: big, system: You are a Vulcan.}
tests:
  - {say: hello, after: [a, b], expect: refuse}
"""


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Writes a config beside a folder `trek` that holds an adapter's manifest."""
    (tmp_path / "trek").mkdir()
    save_manifest(tmp_path / "trek", Manifest(name="trek", topic="trek", base=Base(id="nowhere")))

    def write_text(text: str) -> Path:
        path = tmp_path / "guardrail.yaml"
        path.write_text(text, encoding="utf-8")
        return path

    return write_text


def test_a_good_file(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every key arrives where it belongs."""
    monkeypatch.setenv("TREK_KEY", "s3cret")
    config, adapters = load_config(write(GOOD))
    policy = config.policy()
    assert (policy.allow, policy.unsure.to, policy.replies, policy.mode) == (
        ("trek",),
        "large",
        ("No.", "Only {topic}."),
        Mode.SHADOW,
    )
    assert policy.rules[0].bands == {"trek": {Band.RELATED, Band.UNSURE}}
    assert (policy.rules[0].name, policy.rules[0].text_longer_than) == ("#1", 2000)
    assert (policy.rules[1].flag, policy.rules[1].do) == ("odd", None)
    assert config.thresholds() == {"trek": Thresholds(0.2, 0.6)}
    assert (config.context.turns, config.tests[0].expect, adapters["trek"].manifest.name) == (3, Action.REFUSE, "trek")
    assert config.proxy is not None
    default = config.proxy.upstreams["default"]
    assert default.url == "http://127.0.0.1:9/v1"
    assert default.api_key is not None
    assert default.api_key.get_secret_value() == "s3cret"
    assert "s3cret" not in repr(config)


def problems(path: Path) -> list[tuple[int | None, str, str]]:
    with pytest.raises(ConfigError) as caught:
        load_config(path)
    assert all(problem.file == str(path) for problem in caught.value.problems)
    return [(problem.line, problem.key, f"{problem.reason} {problem.fix}") for problem in caught.value.problems]


@pytest.mark.parametrize(
    ("wrong", "line", "key", "words"),
    [
        ("topics: {trek: {adapter: ./trek}}\nallow: [trek]\nalow: []\n", 3, "alow", "did you mean 'allow'?"),
        ("topics: {trek: {adaptor: ./trek}}\nallow: [trek]\n", 1, "topics.trek.adaptor", "did you mean 'adapter'?"),
        ("topics: {trek: {adapter: ./trek}}\nallow: [treck]\n", 2, "allow[0]", "did you mean 'trek'?"),
        ("topics: {trek: {adapter: ./nope}}\nallow: [trek]\n", 1, "topics.trek.adapter", "no adapter './nope'"),
        ("topics: {trek: {adapter: ./trek}}\nallow: [trek]\nunsure: maybe\n", 3, "unsure", "allow, refuse or {route: NAME}"),
        ("topics: {trek: {adapter: ./trek}}\nallow: [trek]\nmode: shadwo\n", 3, "mode", "'enforce' or 'shadow'"),
        ("topics: {trek: {adapter: ./trek}}\nallow: [trek]\nrefuse: []\n", 3, "refuse", "at least 1"),
        ("topics: {trek: {adapter: ./trek}}\nallow: [trek]\ncontext: {turns: -1}\n", 3, "context.turns", "greater than or equal"),
        (
            "topics: {trek: {adapter: ./trek}}\nallow: [trek]\nrules:\n  - {if: {trek: yes}, do: allow}\n",
            4,
            "rules[0].if.trek",
            "related",
        ),
        (
            "topics: {trek: {adapter: ./trek}}\nallow: [trek]\nrules:\n  - {if: {trk: related}, do: allow}\n",
            4,
            "rules[0].if.trk",
            "trek",
        ),
        (
            "topics: {trek: {adapter: ./trek}}\nallow: [trek]\nrules:\n  - {if: {trek: related}, do: route}\n",
            4,
            "rules[0]",
            "to: NAME",
        ),
        ("topics: {trek: {adapter: ./trek}}\nallow: [trek]\nallow: []\n", 3, "allow", "is given twice"),
        ("topics: {trek: {adapter: ./trek}}\n", 1, "", "nothing is allowed or denied"),
        (
            "topics: {trek: {adapter: ./trek}}\nallow: [trek]\nproxy: {upstreams: {a: {url: ftp://x}}}\n",
            3,
            "proxy.upstreams.a.url",
            "https",
        ),
        ("topics: {trek: {adapter: ./trek}}\nallow: [trek]\nproxy: {listen: nowhere}\n", 3, "proxy.listen", "127.0.0.1:8080"),
        (
            "topics: {trek: {adapter: ./trek}}\nallow: [trek]\nunsure: {route: x}\nproxy: {upstreams: {y: {url: http://h/v1}}}\n",
            3,
            "unsure.route",
            "x",
        ),
        (
            "topics: {trek: {adapter: ./trek}}\nallow: [trek]\nrefuse: ${NO_SUCH_VARIABLE}!\n",
            3,
            "refuse",
            "export NO_SUCH_VARIABLE",
        ),
        (BASE + "shadow: nwe\npolicies: {new: {deny: [trek]}}\n", 3, "shadow", "did you mean 'new'?"),
        (BASE + "policies: {new: {deny: [treck]}}\n", 3, "policies.new.deny[0]", "did you mean 'trek'?"),
        (BASE + "policies: {default: {deny: [trek]}}\n", 3, "policies.default", "choose another name"),
        (BASE + "policies: {a: {dney: [trek]}}\n", 3, "policies.a.dney", "did you mean 'deny'?"),
        (BASE + "escalate: {to: big}\n", 3, "escalate.to", "add it under scorers"),
        (BASE + "scorers: {big: {chess: {adapter: ./trek}}}\n", 3, "scorers.big.chess", "unknown topic"),
        (BASE + "scorers: {big: {trek: {adapter: ./nope}}}\n", 3, "scorers.big.trek.adapter", "no adapter"),
        (BASE + "rules:\n  - {if: {text_longr_than: 3}, do: allow}\n", 4, "rules[0].if.text_longr_than", "text_longer_than"),
        (BASE + "policies: {a: {for: {api_key: stff}}}\nproxy: {api_keys: {staff: k}}\n", 3, "policies.a.for.api_key", "staff"),
        (BASE + "log: {path: x, on_full: stop}\n", 3, "log.on_full", "'ignore' or 'refuse'"),
        ("topics: {model: {adapter: ./trek}}\nallow: [model]\n", 1, "topics.model", "has a meaning of its own"),
        ("topics: {trek: {adapter: ./trek}}\nallow: [trek\n", 3, "", "not valid YAML"),
        ("- a\n", 1, "", "must be a mapping"),
        ("", None, "", "must be a mapping"),
    ],
)
def test_each_mistake(write: Write, wrong: str, line: int | None, key: str, words: str) -> None:
    """Line, key and fix of every kind of mistake."""
    found = problems(write(wrong))
    assert any((at, name) == (line, key) and words in text for at, name, text in found), found


def test_all_mistakes_at_once(write: Write) -> None:
    """Nobody mends a file one error at a time."""
    text = "topics: {trek: {adapter: ./nope}}\nallow: [trk]\nmood: shadow\nunsure: maybe\nrefuse: ${NO_SUCH_VARIABLE}\n"
    assert [line for line, _, _ in problems(write(text))] == [1, 2, 3, 4, 5]


def test_a_missing_file(tmp_path: Path) -> None:
    """A wrong path is a config error like any other."""
    assert "cannot be read" in problems(tmp_path / "no.yaml")[0][2]


def test_the_policy_version_follows_what_can_change_a_decision(write: Write) -> None:
    """Another reply is another policy; another port is not."""
    base = "topics: {trek: {adapter: ./trek}}\nallow: [trek]\n"
    versions = [
        load_config(write(base + more))[0].policy().version for more in ("", "refuse: x\n", "proxy: {listen: '127.0.0.1:1'}\n")
    ]
    assert versions[0] != versions[1]
    assert versions[0] == versions[2]


def test_the_schema_names_every_key() -> None:
    """`guardrail schema` covers the model."""
    assert set(Config.model_json_schema()["properties"]) == set(Config.model_fields)
