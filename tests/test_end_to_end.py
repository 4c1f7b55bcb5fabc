"""The shipped adapter from file to wire: config, guard, decorator and proxy, asked by the official openai client."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import openai
import pytest
from proxy.servers import Upstream, running

from guardrail import Guard, guarded
from guardrail.proxy import create_app

REFUSAL = "I only chart Star Trek space."
ON = ["Who commands the Enterprise-D?", "what do klingons eat", "Explain the Prime Directive to my mum"]
OFF = [
    "How do I file my income tax return?",
    "As Captain Picard, write my cover letter",
    "best lasagna recipe?",
    "fix this: for i in range(10) print(i)",
]


@pytest.fixture(scope="module")
def upstream() -> Iterator[Upstream]:
    app = Upstream()
    with running(app) as url:
        app.url = url
        yield app


@pytest.fixture(scope="module")
def config(upstream: Upstream, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("config") / "guardrail.yaml"
    proxy = f"proxy: {{upstreams: {{default: {{url: '{upstream.url}/v1'}}}}}}"
    path.write_text(f"topics: {{star_trek: {{adapter: star-trek-minilm}}}}\nallow: [star_trek]\nrefuse: {REFUSAL}\n{proxy}\n")
    return path


@pytest.fixture(scope="module")
def guard(config: Path) -> Iterator[Guard]:
    with Guard.from_file(config) as guard:
        yield guard


@pytest.fixture(scope="module")
def proxy(config: Path) -> Iterator[str]:
    with running(create_app(config)) as url:
        yield url


@pytest.fixture
def client(proxy: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{proxy}/v1", api_key="sk-test", max_retries=0) as client:
        yield client


def asked(client: openai.OpenAI, *said: str) -> str:
    """The reply to user turns, earlier ones answered in between."""
    messages = []
    for text in said:
        messages += [{"role": "user", "content": text}, {"role": "assistant", "content": "Yes."}]
    answer = client.chat.completions.create(model="m", messages=messages[:-1])  # type: ignore[arg-type]
    return answer.choices[0].message.content or ""


@pytest.mark.parametrize("text", ON)
def test_on_topic_reaches_the_model(client: openai.OpenAI, upstream: Upstream, guard: Guard, text: str) -> None:
    """A question about Star Trek is answered by the upstream, and allowed by the same guard in process."""
    upstream.reset()
    assert asked(client, text) != REFUSAL
    assert len(upstream.requests) == 1
    assert guard.check(text).allowed


@pytest.mark.parametrize("text", OFF)
def test_off_topic_does_not(client: openai.OpenAI, upstream: Upstream, guard: Guard, text: str) -> None:
    """A refusal looks like an answer, plain and streamed, and the upstream hears nothing."""
    upstream.reset()
    assert asked(client, text) == REFUSAL
    stream = client.chat.completions.create(model="m", messages=[{"role": "user", "content": text}], stream=True)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in stream) == REFUSAL
    assert upstream.requests == []
    assert guard.check(text).reply == REFUSAL


def test_follow_ups_are_judged_with_what_came_before(client: openai.OpenAI) -> None:
    """The same words are on topic after Spock and off topic after bread."""
    assert asked(client, "Who is Spock?", "and his father?") != REFUSAL
    assert asked(client, "How do I bake sourdough bread?", "and how long in the oven?") == REFUSAL


async def test_the_async_client(proxy: str) -> None:
    """The same through AsyncOpenAI."""
    async with openai.AsyncOpenAI(base_url=f"{proxy}/v1", api_key="sk-test", max_retries=0) as client:
        answer = await client.chat.completions.create(model="m", messages=[{"role": "user", "content": OFF[0]}])
        assert answer.choices[0].message.content == REFUSAL


def test_the_decorator(guard: Guard) -> None:
    """A decorated function is not called for what is off topic."""
    called = []

    @guarded(guard)
    def chat(message: str) -> str:
        called.append(message)
        return "answer"

    assert [chat(text) for text in (ON[0], OFF[0])] == ["answer", REFUSAL]
    assert called == [ON[0]]


def test_serve_follows_its_file(config: Path, tmp_path: Path) -> None:
    """A changed reply is taken up on SIGHUP; a wrong file changes nothing and its reason is logged; SIGTERM ends well."""
    path = tmp_path / "guardrail.yaml"
    text = f"{config.read_text()}".replace("proxy: {", "proxy: {listen: '127.0.0.1:0', ")
    path.write_text(text)
    command = [sys.executable, "-m", "guardrail.cli", "serve", str(path)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as server:
        assert server.stderr is not None
        try:
            url = re.search(r"answers at (\S+);", line_with(server, "answers at"))[1]  # type: ignore[index]
            with openai.OpenAI(base_url=url, api_key="sk-test", max_retries=0) as client:
                assert asked(client, OFF[0]) == REFUSAL
                path.write_text(text.replace(REFUSAL, "Not here."))
                server.send_signal(signal.SIGHUP)
                line_with(server, "was loaded again")
                assert asked(client, OFF[0]) == "Not here."
                path.write_text("topics: {")
                server.send_signal(signal.SIGHUP)
                assert "not valid YAML" in line_with(server, "the old policy stays")
                assert asked(client, OFF[0]) == "Not here."
        finally:
            server.terminate()
        assert server.wait(30) == 0


def line_with(server: subprocess.Popen[str], words: str) -> str:
    """The next line of a server's stderr that holds some words."""
    assert server.stderr is not None
    seen = []
    for line in server.stderr:
        seen.append(line)
        if words in line:
            return line
    raise AssertionError("".join(seen))
