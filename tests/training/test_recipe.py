from __future__ import annotations

from pathlib import Path

import pytest

from training.errors import TrainingError
from training.recipe import RECIPES, load_recipe


@pytest.mark.parametrize("path", sorted(RECIPES.glob("*.yaml")), ids=lambda path: path.stem)
def test_recipes_load(path: Path) -> None:
    """Every recipe that comes with the project is valid and named like its file."""
    assert load_recipe(path.stem)[0].name == path.stem


@pytest.mark.parametrize(("name", "base"), [("star_trek_qwen3_4b", "Qwen/Qwen3-4B"), ("star_trek_qwen3_0_6b", "Qwen/Qwen3-0.6B")])
def test_qwen_recipes_are_the_original_cards(name: str, base: str) -> None:
    """The hyper-parameters are exactly those of the original model card."""
    recipe, _ = load_recipe(name)
    lora, train = recipe.lora, recipe.train
    assert recipe.base.id == base
    assert (lora.r, lora.alpha, lora.dropout) == (16, 32, 0.05)
    assert set(lora.targets) == {"q_proj", "v_proj", "up_proj", "down_proj"}
    assert (train.lr, train.batch, train.accumulation, train.epochs, train.precision) == (2e-4, 2, 16, 3, "fp16")
    assert (recipe.window_tokens, recipe.data.held_out) == (512, 0.1)


def test_unknown_and_wrong_keys_are_all_named(tmp_path: Path, recipe_file: Path) -> None:
    """Every mistake of a recipe is said at once, with file and key."""
    path = tmp_path / "bad.yaml"
    path.write_text(recipe_file.read_text().replace("lr: 2.0e-3", "lr: -1") + "  speed: 3\n")
    with pytest.raises(TrainingError) as caught:
        load_recipe(str(path))
    assert "bad.yaml: train.lr: Input should be greater than 0" in str(caught.value)
    assert "bad.yaml: train.speed: unknown key" in str(caught.value)


def test_overrides_set_one_key(recipe_file: Path) -> None:
    """`--set` reads its value as YAML and is checked like the file."""
    recipe, _ = load_recipe(str(recipe_file), ["lora.r=32", "lora.targets=[query]"])
    assert (recipe.lora.r, recipe.lora.targets) == (32, ("query",))
    with pytest.raises(TrainingError, match=r"lora\.rank: unknown key"):
        load_recipe(str(recipe_file), ["lora.rank=32"])
    with pytest.raises(TrainingError, match="write KEY=VALUE"):
        load_recipe(str(recipe_file), ["lora.r"])


def test_unknown_recipe_lists_the_known() -> None:
    """A mistyped name is answered with the names there are."""
    with pytest.raises(TrainingError, match=r"Known: .*star_trek_minilm"):
        load_recipe("star_trek_minilmm")
