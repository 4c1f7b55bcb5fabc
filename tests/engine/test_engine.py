"""The engine: real models, worker threads, and what happens when things go wrong."""

from __future__ import annotations

import asyncio
import math
import shutil
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, wait
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from engine.adapters import MINILM, RELATED, UNRELATED, varied_sentences
from guardrail.adapter import Adapter, Base, Calibration, Form, load_adapter, save_manifest
from guardrail.chat import Turn
from guardrail.engine import engine as engine_module
from guardrail.engine.encoding import Encoded
from guardrail.engine.engine import Engine, Model, open_engine, probability
from guardrail.engine.weights import resolve_base
from guardrail.errors import CanaryError, ClosedError, GuardrailError, OverloadedError, ScoringError, UnreadableError
from guardrail.scoring import Explaining, Scores, Thresholds

POISON = "the poisoned text"
BOTH = pytest.mark.parametrize("form", ["int8", "fp32"])
LONG = "the bread is in the oven and smells good. " * 40


class Gate:
    """A real backend that waits until it is opened, counts its passes, and breaks on rows of one text."""

    def __init__(self, model: Model, *, workers: int = 1, tokens: int = 0) -> None:
        self.model = model
        self.form: Form = model.backend.form
        self.workers, self.max_batch_tokens = workers, tokens
        self.entered, self.opened = threading.Semaphore(0), threading.Event()
        self.passes: list[int] = []
        self.poison = set(model.rows(Turn(POISON)))

    def score(self, batch: Sequence[Encoded]) -> list[float]:
        self.passes.append(len(batch))
        self.entered.release()
        assert self.opened.wait(30)
        if self.poison & set(batch):
            raise ValueError("poisoned")
        return self.model.backend.score(batch)


@pytest.fixture
def gated(trek_fp32: Model) -> Iterator[Callable[..., tuple[Engine, Gate]]]:
    """Engines on a gated backend; closed at the end."""
    made: list[tuple[Engine, Gate]] = []

    def make(limit: int = 256, **options: int) -> tuple[Engine, Gate]:
        gate = Gate(trek_fp32, **options)
        made.append((Engine({"topic": Model(trek_fp32.adapter, trek_fp32.encoder, gate)}, queue_limit=limit), gate))
        return made[-1]

    yield make
    for engine, gate in made:
        gate.opened.set()
        engine.close()


def low(future: Future[Scores]) -> float:
    return future.result(30)["topic"].low


@BOTH
def test_scores_from_text_to_topic(trek: Adapter, form: Form) -> None:
    """What the adapter learned comes out, with its thresholds and version, under the topic's name."""
    with open_engine({"trek": trek}, device="cpu", form=form) as engine:
        assert engine.form == form
        assert engine.topics["trek"].thresholds == Thresholds(0.2, 0.8)
        assert (engine.topics["trek"].adapter, engine.topics["trek"].version) == ("trek", trek.version)
        scores = {text: engine.submit(Turn(text)).result(30)["trek"] for text in RELATED + UNRELATED}
    assert all(score.low == score.high for score in scores.values())
    assert min(scores[text].low for text in RELATED) > 0.5 > max(scores[text].high for text in UNRELATED)


def test_long_text_has_a_lowest_and_a_highest_part(trek: Adapter) -> None:
    """One related sentence in a long text about something else: high sees it, low does not."""
    with open_engine({"topic": trek}, form="int8") as engine:
        score = engine.submit(Turn(LONG + RELATED[0] + LONG)).result(30)["topic"]
        plain = engine.submit(Turn(LONG + LONG)).result(30)["topic"]
    assert score.high > plain.high + 0.1
    assert score.low == pytest.approx(plain.low, abs=0.1)


def test_disguise_does_not_help(trek: Adapter) -> None:
    """The score of a disguised text spans that of the plain one."""
    with open_engine({"topic": trek}, form="int8") as engine:
        for plain, disguised in (("who is captain kirk", "who is captаin kіrk"), ("klingon honor", "k l i n g o n  h o n o r")):
            expected = engine.submit(Turn(plain)).result(30)["topic"].low
            found = engine.submit(Turn(disguised)).result(30)["topic"]
            assert found.low < found.high
            assert min(abs(found.low - expected), abs(found.high - expected)) < 1e-6


def test_parts_are_what_the_score_is_made_of(trek: Adapter) -> None:
    """Every window of every view with its text, for every topic; the lowest and highest are the score."""
    text = LONG + "K l i n g o n s and Vulcans. " + LONG
    with open_engine({"a": trek, "b": trek}, form="int8") as engine:
        assert isinstance(engine, Explaining)
        parts = engine.parts(Turn(text, ("before",)))
        score = engine.submit(Turn(text, ("before",))).result(30)["a"]
        with pytest.raises(UnreadableError, match="too long"):
            engine.parts(Turn("word " * 100_000))
    found = [part for part in parts if part.topic == "a"]
    assert [part.probability for part in found] == [part.probability for part in parts if part.topic == "b"]
    assert (min(part.probability for part in found), max(part.probability for part in found)) == (score.low, score.high)
    assert {part.view for part in found} == {"as written", "normalised"}
    assert found[0].text.startswith("the bread")
    assert found[-1].text.endswith("smells good.")
    assert any("Klingons and Vulcans." in part.text for part in found if part.view == "normalised")
    assert all(part.text in text for part in found if part.view == "as written")


def test_context_changes_the_score(trek: Adapter) -> None:
    """A follow-up is judged with what was said before."""
    with open_engine({"topic": trek}, form="int8") as engine:
        scores = {low(engine.submit(Turn("and his father?", context))) for context in ((), (RELATED[0],), (UNRELATED[0],))}
    assert len(scores) == 3


def test_calibration_of_the_served_form(trek_fp32: Model, trek: Adapter, copied: Callable[[Adapter], Path]) -> None:
    """P = sigmoid(logit / temperature + bias), by the numbers of the form that is served."""
    folder = copied(trek)
    fitted = {"fp32": Calibration(temperature=2.0, bias=-0.5), "int8": Calibration(temperature=50.0)}
    save_manifest(folder, trek.manifest.model_copy(update={"calibration": fitted, "canaries": ()}))
    adapter = load_adapter(folder)
    [logit] = trek_fp32.logits(Turn(RELATED[0]))
    with open_engine({"topic": adapter}, device="cpu", form="fp32") as engine:
        assert low(engine.submit(Turn(RELATED[0]))) == pytest.approx(1 / (1 + math.exp(-(logit / 2 - 0.5))), abs=1e-6)
    with open_engine({"topic": adapter}, form="int8") as engine:
        assert 0.5 < low(engine.submit(Turn(RELATED[0]))) < 0.6


def test_probability_at_the_ends() -> None:
    """No overflow, no lost digits, no value out of [0, 1]."""
    found = [probability(logit, Calibration()) for logit in (-1e9, -30.0, 0.0, 30.0, 1e9)]
    assert found == [0.0, pytest.approx(math.exp(-30), rel=1e-9), 0.5, pytest.approx(1.0), 1.0]


def test_two_topics_may_share_an_adapter(trek: Adapter, qwen: Adapter, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is loaded and run once; every result holds every topic."""
    opened: list[str] = []
    plain = engine_module.open_model
    monkeypatch.setattr(
        engine_module,
        "open_model",
        lambda adapter, **options: (opened.append(adapter.manifest.name), plain(adapter, **options))[1],
    )
    with open_engine({"a": trek, "b": trek, "other": qwen}, form="int8") as engine:
        scores = engine.submit(Turn("who is kirk?")).result(30)
    assert opened == ["trek", "qwen"]
    assert set(scores) == set(engine.topics) == {"a", "b", "other"}
    assert scores["a"] == scores["b"] != scores["other"]


def test_batching_on_a_cpu_equals_one_by_one(trek: Adapter, gated: Callable[..., tuple[Engine, Gate]]) -> None:
    """The GPU's scheduling on the torch path: those that wait run together, longer turns too, each with its own score."""
    texts = [*varied_sentences()[::16], LONG, "k l i n g o n  h o n o r"]
    engine, gate = gated(tokens=4096)
    first = engine.submit(Turn("wait"))
    assert gate.entered.acquire(timeout=30)
    futures = [engine.submit(Turn(text)) for text in texts]
    gate.opened.set()
    together = [future.result(30)["topic"] for future in (first, *futures)]
    assert len(gate.passes) == 2
    with open_engine({"topic": trek}, device="cpu", form="fp32") as plain:
        alone = [plain.submit(Turn(text)).result(30)["topic"] for text in ("wait", *texts)]
    for one, other in zip(together, alone, strict=True):
        assert (one.low, one.high) == pytest.approx((other.low, other.high), abs=1e-3)


def test_full_queue(gated: Callable[..., tuple[Engine, Gate]]) -> None:
    """Submitting never waits: the turn past the limit is turned away with a time, the others are scored."""
    engine, gate = gated(limit=3)
    running = engine.submit(Turn("running"))
    assert gate.entered.acquire(timeout=30)
    waiting = [engine.submit(Turn(f"waiting {n}")) for n in range(3)]
    assert engine.waiting == 3
    with pytest.raises(OverloadedError) as raised:
        engine.submit(Turn("one too many"))
    assert raised.value.retry_after > 0
    gate.opened.set()
    assert all(0 <= low(future) <= 1 for future in (running, *waiting))
    assert 0 <= low(engine.submit(Turn("one too many"))) <= 1


def test_cancelled_turn_is_not_scored(gated: Callable[..., tuple[Engine, Gate]]) -> None:
    """Work that nobody waits for is dropped before it begins."""
    engine, gate = gated()
    running = engine.submit(Turn("running"))
    assert gate.entered.acquire(timeout=30)
    given_up, kept = engine.submit(Turn("given up")), engine.submit(Turn("kept"))
    assert given_up.cancel()
    gate.opened.set()
    assert low(kept) >= 0
    assert running.done()
    assert len(gate.passes) == 2


def test_same_turn_is_scored_once(gated: Callable[..., tuple[Engine, Gate]]) -> None:
    """Asked for at the same time it is one pass; later it comes from the cache, at once; another context is another turn."""
    engine, gate = gated()
    futures = [engine.submit(Turn("same")) for _ in range(5)]
    assert futures[1].cancel()
    gate.opened.set()
    done = [futures[n].result(30) for n in (0, 2, 3, 4)]
    assert all(scores is done[0] for scores in done)
    assert engine.submit(Turn("same")).done()
    assert engine.submit(Turn("same", ("before",))).result(30) is not done[0]
    assert len(gate.passes) == 2


def test_poisoned_turn_fails_alone(gated: Callable[..., tuple[Engine, Gate]]) -> None:
    """A forward pass that breaks is repeated in halves: one turn ends with an error, its neighbours with their scores."""
    engine, gate = gated(tokens=4096)
    engine.submit(Turn("wait"))
    assert gate.entered.acquire(timeout=30)
    texts = ["one", "two", POISON, "three", "four", "five"]
    futures = {text: engine.submit(Turn(text)) for text in texts}
    gate.opened.set()
    with pytest.raises(ScoringError, match="poisoned"):
        futures.pop(POISON).result(30)
    assert all(0 <= low(future) <= 1 for future in futures.values())
    with pytest.raises(ScoringError, match="poisoned"):
        engine.submit(Turn(POISON)).result(30)
    assert 0 <= low(engine.submit(Turn("six"))) <= 1


def test_a_score_that_is_no_number_is_an_error(
    gated: Callable[..., tuple[Engine, Gate]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """NaN would compare as neither related nor not related."""
    engine, gate = gated()
    monkeypatch.setattr(gate, "score", lambda batch: [math.nan] * len(batch))
    with pytest.raises(ScoringError, match="nan"):
        engine.submit(Turn("text")).result(30)


def test_too_long_a_text_fails_alone(trek: Adapter) -> None:
    """The future says why; the engine goes on."""
    with open_engine({"topic": trek}, form="int8") as engine:
        future = engine.submit(Turn("word " * 100_000))
        with pytest.raises(UnreadableError, match="too long"):
            future.result(30)
        assert 0 <= low(engine.submit(Turn("short"))) <= 1


def test_close(gated: Callable[..., tuple[Engine, Gate]]) -> None:
    """What runs ends with its score, what waits and what comes with an error, and no thread stays."""
    engine, gate = gated()
    running = engine.submit(Turn("running"))
    assert gate.entered.acquire(timeout=30)
    waiting = engine.submit(Turn("waiting"))
    threading.Timer(0.1, gate.opened.set).start()
    engine.close()
    assert 0 <= low(running) <= 1
    with pytest.raises(ClosedError):
        waiting.result(30)
    with pytest.raises(ClosedError):
        engine.submit(Turn("late"))
    assert not any(thread.is_alive() for thread in engine._threads)
    engine.close()


def test_close_from_a_callback(gated: Callable[..., tuple[Engine, Gate]]) -> None:
    """A worker may close its own engine."""
    engine, gate = gated()
    gate.opened.set()
    closed = threading.Event()
    engine.submit(Turn("text")).add_done_callback(lambda _: (engine.close(), closed.set()))
    assert closed.wait(30)


async def test_event_loop_is_not_blocked(gated: Callable[..., tuple[Engine, Gate]]) -> None:
    """A loop goes on while its turns wait, and a cancelled await drops the turn."""
    engine, gate = gated()
    futures = [asyncio.wrap_future(engine.submit(Turn(f"text {n}"))) for n in range(3)]
    for _ in range(100):
        await asyncio.sleep(0)
    assert not any(future.done() for future in futures)
    futures[2].cancel()
    await asyncio.sleep(0)
    gate.opened.set()
    assert all(0 <= scores["topic"].low <= 1 for scores in await asyncio.gather(*futures[:2]))
    assert len(gate.passes) == 2


@BOTH
def test_many_threads(trek: Adapter, form: Form) -> None:
    """Submitted from eight threads, every turn gets its own score."""
    texts = varied_sentences()[::6]
    with open_engine({"topic": trek}, device="cpu", form=form, queue_limit=1000) as engine:
        expected = [low(engine.submit(Turn(text))) for text in texts]
        engine._results = engine_module.Results(0)
        found: list[list[float]] = [[] for _ in range(4)]

        def ask(index: int) -> None:
            found[index] = [low(future) for future in [engine.submit(Turn(text)) for text in texts]]

        threads = [threading.Thread(target=ask, args=(index,)) for index in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    for scores in found:
        assert scores == pytest.approx(expected, abs=1e-3)


def test_every_future_ends_under_chaos(gated: Callable[..., tuple[Engine, Gate]]) -> None:
    """Whatever is cancelled, poisoned or turned away meanwhile, none is left hanging when the engine is closed."""
    engine, gate = gated(limit=20, workers=3, tokens=64)
    gate.opened.set()
    futures: list[Future[Scores]] = []
    lock = threading.Lock()

    def ask(index: int) -> None:
        for n in range(40):
            try:
                future = engine.submit(Turn(POISON if n % 7 == 0 else f"text {n * index % 25}"))
            except OverloadedError:
                continue
            if n % 5 == 0:
                future.cancel()
            with lock:
                futures.append(future)

    threads = [threading.Thread(target=ask, args=(index,)) for index in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    engine.close()
    assert not wait(futures, timeout=30).not_done
    assert any(not future.cancelled() and future.exception() is None for future in futures)


def test_canaries_pass(trek: Adapter) -> None:
    """In both forms; they hold scores on either side."""
    assert {canary.score > 0.5 for canary in trek.manifest.canaries} == {True, False}
    for form in ("int8", "fp32"):
        open_engine({"topic": trek}, device="cpu", form=form).close()


def broken(folder: Path, how: str) -> Adapter:
    """An adapter folder with one thing wrong."""
    file = folder / "adapter_model.safetensors"
    weights = load_file(file)
    if how == "swapped labels":
        save_file({name: value[::-1].copy() if "classifier" in name else value for name, value in weights.items()}, file)
    elif how == "other positive label":
        save_manifest(folder, load_adapter(folder).manifest.model_copy(update={"positive": 0}))
    elif how == "dead adapter":
        save_file(
            {name: value * 0 if "lora_B" in name or "pooler" in name else value for name, value in weights.items()},
            file,
        )
    elif how == "wrong base":
        _with_other_base(folder)
    return load_adapter(folder)


def _with_other_base(folder: Path) -> None:
    base = Path(shutil.copytree(resolve_base(MINILM), folder / "other-base"))
    chance = np.random.default_rng(0)
    weights = load_file(base / "model.safetensors")
    for name in [name for name in weights if "encoder.layer" in name and name.endswith("dense.weight")]:
        weights[name] = chance.normal(0, weights[name].std(), weights[name].shape).astype(np.float32)
    save_file(weights, base / "model.safetensors", {"format": "pt"})
    save_manifest(folder, load_adapter(folder).manifest.model_copy(update={"base": Base(id=str(base))}))


@pytest.mark.parametrize("how", ["swapped labels", "other positive label", "dead adapter", "wrong base"])
def test_canaries_stop_a_broken_adapter(trek: Adapter, copied: Callable[[Adapter], Path], how: str) -> None:
    """The error names the folder, the text, what it should score and what it scores."""
    adapter = broken(copied(trek), how)
    with pytest.raises(CanaryError) as raised:
        open_engine({"topic": adapter}, device="cpu", form="fp32")
    message = str(raised.value)
    canary = next(canary for canary in adapter.manifest.canaries if repr(canary.input) in message)
    assert str(adapter.folder) in message
    assert f"should score {canary.score:.3f} and scores 0." in message


def test_device_that_is_not_there(trek: Adapter, monkeypatch: pytest.MonkeyPatch) -> None:
    """`cuda` without a GPU is an error; `auto` falls back to the compiled form."""
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(GuardrailError, match=r"no CUDA device.*Fix"):
        open_engine({"topic": trek}, device="cuda")
    monkeypatch.setattr(engine_module, "_has_gpu_driver", lambda: True)
    with open_engine({"topic": trek}) as engine:
        assert engine.form == "int8"


def test_foreign_checkpoint(qwen: Adapter) -> None:
    """A merged decoder with LABEL_0 and LABEL_1 is served; naming the other label turns its scores round."""
    swapped = load_adapter(qwen.folder, positive_label="LABEL_0")
    with open_engine({"a": qwen}, form="int8") as one, open_engine({"a": swapped}, form="int8") as other:
        turn = Turn("who is kirk?", ("hello",))
        assert one.submit(turn).result(30)["a"].low == pytest.approx(1 - other.submit(turn).result(30)["a"].low, abs=1e-5)
