"""A proxy with a guard that goes by words, in front of a recording upstream; both run as real servers in threads."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from guardrail import Guard
from guardrail.chat import Turn
from guardrail.config import Config
from guardrail.errors import OverloadedError, ScoringError
from guardrail.proxy import create_app
from guardrail.testing import FixedScorer
from proxy.servers import Upstream, running

REFUSAL = "I only chart Star Trek space."
CHAT = "/v1/chat/completions"


def by_words(turn: Turn) -> float | Exception:
    """Refuse what speaks of tax; fail on what says so."""
    if "fail" in turn.text:
        return ScoringError("out of dilithium")
    if "busy" in turn.text:
        return OverloadedError("the queue is full", retry_after=2.5)
    return 0.01 if "tax" in turn.text else 0.99


def config_for(upstream: str, **changes: Any) -> Config:
    """A config with two upstreams at one address; long turns are routed to `large`."""
    proxy = {
        "upstreams": {
            "default": {"url": f"{upstream}/v1"},
            "large": {"url": f"{upstream}/large/v1", "model": "big-model", "system": "You are a Vulcan scientist."},
        }
    }
    base: dict[str, Any] = {
        "topics": {"star_trek": {"adapter": "fixed"}},
        "allow": ["star_trek"],
        "refuse": REFUSAL,
        "rules": [{"if": {"star_trek": "related", "text_longer_than": 200}, "do": "route", "to": "large"}],
        "proxy": proxy,
    }
    proxy.update(changes.pop("proxy", {}))
    return Config.model_validate({**base, **changes})


@pytest.fixture(scope="session")
def _upstream() -> Iterator[Upstream]:
    app = Upstream()
    with running(app) as url:
        app.url = url
        yield app


@pytest.fixture
def upstream(_upstream: Upstream) -> Upstream:
    """The recording upstream, with nothing recorded."""
    _upstream.reset()
    return _upstream


@pytest.fixture(scope="session")
def proxy_url(_upstream: Upstream) -> Iterator[str]:
    """URL of a proxy in front of `upstream`, with default settings."""
    config = config_for(_upstream.url)
    with running(create_app(config, Guard.from_config(config, FixedScorer(star_trek=by_words)))) as url:
        yield url


@pytest.fixture(scope="session")
def open_url(_upstream: Upstream) -> Iterator[str]:
    """URL of a proxy that lets everything pass."""
    config = config_for(_upstream.url, rules=[])
    with running(create_app(config, Guard.from_config(config, FixedScorer(star_trek=0.99)))) as url:
        yield url


Proxies = Callable[..., str]


@pytest.fixture
def proxies(upstream: Upstream) -> Iterator[Proxies]:
    """Starts a proxy with changes to its config; `scorer` replaces the guard's."""
    with ExitStack() as stack:

        def start(upstream_url: str = upstream.url, scorer: Any = None, **changes: Any) -> str:
            config = config_for(upstream_url, **changes)
            guard = Guard.from_config(config, scorer or FixedScorer(star_trek=by_words))
            return stack.enter_context(running(create_app(config, guard)))

        yield start
