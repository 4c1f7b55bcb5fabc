"""Where a recipe's files lie: `training/runs/NAME/` while it is made, `adapters/NAME/` when it is done."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from training.data import Example, read_jsonl
from training.errors import TrainingError
from training.names import Part
from training.recipe import HERE, Recipe, load_recipe, topic_folder

RUNS = HERE / "runs"
ADAPTERS = HERE.parent / "adapters"


@dataclass(frozen=True, slots=True)
class Run:
    """A recipe and the folders that it reads and writes."""

    recipe: Recipe
    recipe_file: Path
    folder: Path
    adapter: Path

    @property
    def composed(self) -> Path:
        """Folder of the composed examples, one JSONL a part."""
        return self.folder / "composed"

    @property
    def checkpoints(self) -> Path:
        """Folder of the Trainer's checkpoints."""
        return self.folder / "checkpoints"

    @property
    def near(self) -> Path:
        """Folder that relative paths of the recipe start from."""
        return self.recipe_file.parent

    def topic(self, name: str) -> Path:
        """Folder of a topic."""
        return topic_folder(name, self.recipe_file)

    def file(self, part: Part) -> Path:
        """JSONL of a part."""
        return self.folder / f"{part}.jsonl"

    def examples(self, part: Part) -> list[Example]:
        """Examples of a part; raises `TrainingError` before `split` has written them."""
        if not self.file(part).is_file():
            raise TrainingError(f"{self.file(part)} is missing. Fix: python -m training split {self.recipe.name}")
        return read_jsonl(self.file(part))

    def require_adapter(self) -> Path:
        """Folder of the trained adapter; raises `TrainingError` before `train` has written it."""
        if not (self.adapter / "adapter_config.json").is_file():
            raise TrainingError(f"{self.adapter} holds no adapter. Fix: python -m training train {self.recipe.name}")
        return self.adapter


def open_run(recipe: str, overrides: Sequence[str] = (), runs: Path = RUNS, adapters: Path = ADAPTERS) -> Run:
    """The run of a recipe. Raises `TrainingError` if the recipe cannot be read."""
    loaded, path = load_recipe(recipe, overrides)
    return Run(loaded, path, runs / loaded.name, adapters / loaded.adapter)
