from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest
from safetensors.numpy import load_file

from guardrail.adapter import load_adapter
from training.batches import SimilarLengths
from training.errors import TrainingError
from training.run import Run
from training.train import build_trainer, last_checkpoint, train

pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")


def test_adapter_folder_is_complete(trained: Run) -> None:
    """The adapter names the Hub id of its base and no path of the machine, and its weights are fp32."""
    config = json.loads((trained.adapter / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "sentence-transformers/all-MiniLM-L6-v2"
    texts = [path.read_text() for path in trained.adapter.iterdir() if path.suffix in (".json", ".md")]
    assert not any(str(Path(sys.prefix)) in text for text in texts)
    weights = load_file(trained.adapter / "adapter_model.safetensors")
    assert {str(value.dtype) for value in weights.values()} == {"float32"}
    assert {"classifier", "pooler"} <= {part for key in weights for part in key.split(".")}
    manifest = load_adapter(trained.adapter).manifest
    assert (manifest.name, manifest.topic, manifest.window_tokens) == ("chess-tiny", "topic", 48)


def test_it_learns(trained: Run) -> None:
    """A few steps on the real MiniLM bring the loss down."""
    history = json.loads((trained.folder / "train.json").read_text())["history"]
    losses = [row["eval_loss"] for row in history if "eval_loss" in row]
    assert len(losses) == 2
    assert losses[-1] < losses[0] < 0.8


def test_a_killed_run_ends_at_the_same_weights(trained: Run, tmp_path: Path) -> None:
    """Resumed within an epoch, after a kill that left half a checkpoint, training ends at the same bytes as uninterrupted."""
    again = Run(trained.recipe, trained.recipe_file, tmp_path / "run", tmp_path / "adapter")
    again.folder.mkdir()
    for part in ("train", "validation"):
        shutil.copy(trained.file(part), again.file(part))
    _train_until(again, step=4)
    assert last_checkpoint(again.checkpoints) == again.checkpoints / "checkpoint-3"
    half = again.checkpoints / "checkpoint-6"
    half.mkdir()
    (half / "trainer_state.json").write_text('{"global_st')
    train(again, resume=True)
    name = "adapter_model.safetensors"
    assert (again.adapter / name).read_bytes() == (trained.adapter / name).read_bytes()


def test_resume_refuses_another_data_set(trained: Run, tmp_path: Path) -> None:
    """Going on with other data would give weights that nobody can repeat."""
    again = Run(trained.recipe, trained.recipe_file, tmp_path / "run", tmp_path / "adapter")
    shutil.copytree(trained.folder, again.folder)
    again.file("train").write_text(again.file("train").read_text() + '{"input": "new", "label": "related"}\n')
    with pytest.raises(TrainingError, match="made from another recipe or data set"):
        train(again, resume=True)


def test_order_of_an_epoch_depends_on_seed_and_epoch_alone() -> None:
    """Every row comes once, similar lengths together, and another epoch has another order."""
    lengths = [(7 * index) % 40 + 3 for index in range(1000)]
    orders = [list(SimilarLengths(lengths, 16, 3, lambda epoch=epoch: epoch)) for epoch in (0, 0, 1)]  # type: ignore[misc]
    assert orders[0] == orders[1] != orders[2]
    assert sorted(orders[0]) == list(range(1000))
    spread = [
        max(batch) - min(batch)
        for batch in ([lengths[at] for at in orders[0][start : start + 16]] for start in range(0, 900, 16))
    ]
    assert sum(spread) / len(spread) < 10


def test_missing_split_says_what_to_run(recipe_file: Path, tmp_path: Path, prepared: Run) -> None:
    """Training before the split names the command that is missing."""
    with pytest.raises(TrainingError, match="python -m training split tiny"):
        train(Run(prepared.recipe, recipe_file, tmp_path, tmp_path / "adapter"))


def _train_until(run: Run, step: int) -> None:
    """Train and stop as Ctrl-C would, at the end of a step."""
    from transformers import TrainerCallback

    class Interrupt(TrainerCallback):  # type: ignore[misc]
        def on_step_end(self, args: object, state: object, control: object, **_: object) -> None:
            if state.global_step == step:  # type: ignore[attr-defined]
                raise KeyboardInterrupt

    from training.train import _checkpoint

    _checkpoint(run, resume=False)
    trainer = build_trainer(run)
    trainer.add_callback(Interrupt())
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
