"""POST /v1/completions: every prompt must pass, and a refusal is a text completion."""

from __future__ import annotations

from typing import Any

import pytest
from openai import OpenAI

from proxy.conftest import REFUSAL
from proxy.servers import Upstream, ask

PATH = "/v1/completions"


@pytest.mark.parametrize("path", [PATH, "/completions"])
@pytest.mark.parametrize("prompt", [b'"Who is Spock?"', b'["Who is Spock?",  "And Data?"]'])
def test_allowed(open_url: str, upstream: Upstream, path: str, prompt: bytes) -> None:
    """What passes goes to the upstream's own path, unchanged."""
    body = b'{"prompt": %b,  "model":"m"}' % prompt
    assert ask(open_url, path, body).status == 200
    assert (upstream.only.path, upstream.only.body) == (b"/v1/completions", body)


@pytest.mark.parametrize(
    ("body", "choices"),
    [
        ({"prompt": "do my tax"}, 1),
        ({"prompt": ["Spock", "do my tax"]}, 2),
        ({"prompt": "Spock", "suffix": "and now my tax"}, 1),
        ({"prompt": ["tax"], "n": 3, "echo": True, "best_of": 3}, 3),
        ({"prompt": ["Spock", "tax"], "n": 2}, 4),
    ],
)
def test_refused(proxy_url: str, upstream: Upstream, body: dict[str, Any], choices: int) -> None:
    """One refused prompt refuses all; there are `n` choices per prompt, plain and streamed."""
    plain = ask(proxy_url, PATH, {"model": "x", **body}).json
    assert plain["object"] == "text_completion"
    assert plain["id"].startswith("cmpl-")
    expected = [{"index": i, "text": REFUSAL, "logprobs": None, "finish_reason": "stop"} for i in range(choices)]
    assert plain["choices"] == expected
    *events, done = ask(proxy_url, PATH, {"model": "x", "stream": True, **body}).events
    assert done == "[DONE]"
    for i in range(choices):
        mine = [event["choices"][0] for event in events if event["choices"][0]["index"] == i]
        assert "".join(choice["text"] for choice in mine) == REFUSAL
        assert mine[-1]["finish_reason"] == "stop"
    assert upstream.requests == []


def test_usage(proxy_url: str, upstream: Upstream) -> None:
    """Asked for, the usage comes last."""
    *_, usage, _ = ask(proxy_url, PATH, {"prompt": "tax", "stream": True, "stream_options": {"include_usage": True}}).events
    assert (usage["choices"], usage["usage"]["total_tokens"]) == ([], 0)


@pytest.mark.parametrize(
    ("body", "param", "code"),
    [
        ({"prompt": [1, 2, 3]}, "prompt", "token_prompts_not_supported"),
        ({"prompt": [[1, 2], [3]]}, "prompt", "token_prompts_not_supported"),
        ({"prompt": ["Spock", 7]}, "prompt", "token_prompts_not_supported"),
        ({}, "prompt", "invalid_value"),
        ({"prompt": []}, "prompt", "invalid_value"),
        ({"prompt": ["x"] * 65}, "prompt", "invalid_value"),
        ({"prompt": {"text": "Spock"}}, "prompt", "invalid_value"),
        ({"prompt": "Spock", "suffix": ["tax"]}, "suffix", "invalid_value"),
        ({"prompt": "Spock", "messages": [{"role": "user", "content": "tax"}]}, "messages", "unsupported_field"),
        ({"prompt": "Spock", "prompt_embeds": "AAAA"}, "prompt_embeds", "unsupported_field"),
    ],
)
def test_unreadable(proxy_url: str, upstream: Upstream, body: dict[str, Any], param: str, code: str) -> None:
    """What cannot be judged is 400."""
    got = ask(proxy_url, PATH, body)
    assert (got.status, got.code, got.json["error"]["param"]) == (400, code, param)
    assert upstream.requests == []


def test_routed(proxy_url: str, upstream: Upstream) -> None:
    """Another upstream gets its model; a prompt has no system part."""
    ask(proxy_url, PATH, {"prompt": "Spock " * 50, "model": "m", "seed": 1})
    assert (upstream.only.path, upstream.only.json) == (
        b"/large/v1/completions",
        {"prompt": "Spock " * 50, "model": "big-model", "seed": 1},
    )


def test_openai_client(proxy_url: str, upstream: Upstream) -> None:
    """The official client reads a refusal, plain and streamed."""
    with OpenAI(base_url=f"{proxy_url}/v1", api_key="k", max_retries=0) as client:
        assert client.completions.create(model="m", prompt="my tax").choices[0].text == REFUSAL
        pieces = client.completions.create(model="m", prompt="my tax", stream=True)
        assert "".join(piece.choices[0].text for piece in pieces) == REFUSAL
