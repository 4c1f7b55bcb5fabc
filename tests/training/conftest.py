"""A small topic and a recipe for it; the run that trains the real MiniLM on it is shared by the whole session."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from training.dataset import assemble, compose
from training.run import Run, open_run

HERE = Path(__file__).parent


@pytest.fixture(scope="session")
def recipe_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The recipe and its topics in a folder of their own, so that a test may change them."""
    folder = tmp_path_factory.mktemp("recipe")
    for name in ("topic", "other"):
        shutil.copytree(HERE / name, folder / name)
    return Path(shutil.copy(HERE / "tiny.yaml", folder / "tiny.yaml"))


@pytest.fixture(scope="session")
def prepared(recipe_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The recipe with its data set made."""
    folder = tmp_path_factory.mktemp("runs")
    run = open_run(str(recipe_file), runs=folder, adapters=folder / "adapters")
    compose(run)
    assemble(run)
    return run


@pytest.fixture(scope="session")
def trained(prepared: Run) -> Run:
    """The recipe, trained without interruption."""
    from training.train import train

    train(prepared)
    return prepared
