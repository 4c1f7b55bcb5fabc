"""Real small adapters, made once a session; what is compiled is kept for the session, away from the user's cache."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from engine.adapters import MINILM, RELATED, UNRELATED, make_qwen, train_lora
from guardrail.adapter import Adapter, Calibration, Canary, Manifest, load_adapter, save_manifest
from guardrail.chat import Turn
from guardrail.engine.engine import Model, open_model


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The cache of these tests."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GUARDRAIL_CACHE", str(folder))
        yield folder


@pytest.fixture(scope="session")
def trek(tmp_path_factory: pytest.TempPathFactory, cache: Path) -> Adapter:
    """A LoRA adapter of MiniLM that knows forty sentences, with canaries."""
    folder = tmp_path_factory.mktemp("adapters") / "trek"
    train_lora(folder)
    fitted = {"fp32": Calibration(related=0.8, not_related=0.2)}
    manifest = Manifest(name="trek", topic="star_trek", base=MINILM, calibration=fitted)
    save_manifest(folder, manifest)
    model = open_model(load_adapter(folder), device="cpu", form="fp32")
    texts = (RELATED[0], UNRELATED[0], RELATED[3], UNRELATED[4])
    canaries = tuple(Canary(input=text, score=model.score(model.logits(Turn(text))).low) for text in texts)
    save_manifest(folder, manifest.model_copy(update={"canaries": canaries}))
    return load_adapter(folder)


@pytest.fixture(scope="session")
def qwen(tmp_path_factory: pytest.TempPathFactory) -> Adapter:
    """A merged decoder checkpoint as others leave it."""
    folder = tmp_path_factory.mktemp("adapters") / "qwen"
    make_qwen(folder)
    return load_adapter(folder)


@pytest.fixture(scope="session")
def trek_fp32(trek: Adapter) -> Model:
    """The trek adapter on the torch path."""
    return open_model(trek, device="cpu", form="fp32")


@pytest.fixture(scope="session")
def trek_int8(trek: Adapter) -> Model:
    """The trek adapter, compiled."""
    return open_model(trek, device="cpu", form="int8")


@pytest.fixture(scope="session")
def qwen_fp32(qwen: Adapter) -> Model:
    """The decoder on the torch path."""
    return open_model(qwen, device="cpu", form="fp32")


@pytest.fixture
def copied(tmp_path: Path) -> Callable[[Adapter], Path]:
    """Copies an adapter's folder, to be broken."""
    return lambda adapter: Path(shutil.copytree(adapter.folder, tmp_path / adapter.folder.name))
