"""A recipe: which topic, which base, which data, how to train and what the thresholds must keep.

Recipes are YAML files in `training/recipes/`; unknown keys are errors. `--set lora.r=32` overrides one key for an experiment.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from guardrail.adapter import Base
from training.errors import TrainingError

HERE = Path(__file__).parent
RECIPES = HERE / "recipes"
TOPICS = HERE / "topics"


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())


class Borrow(_Part):
    """Messages of another topic that stand here under one label (greetings are not about Star Trek)."""

    topic: str
    take: Literal["related", "not_related"]
    """Which of its messages."""
    label: Literal["related", "not_related"]
    """What they are here."""
    files: tuple[str, ...] = ("*.txt",)
    """Patterns of the message files that are taken."""
    most: int = Field(default=100_000, ge=1)


class Data(_Part):
    """What the examples are."""

    composed: int = Field(default=0, ge=0)
    """Composed examples in train."""
    composed_held_out: int = Field(default=0, ge=0)
    """Composed examples in validation, and as many in test."""
    labelled: float = Field(default=0.3, ge=0, le=1)
    """Share of the composed examples that come from templates with a label of their own."""
    held_out: float = Field(default=0.1, gt=0, lt=0.5)
    """Share of names, templates and messages for test, and as much for validation."""
    borrow: tuple[Borrow, ...] = ()


class Lora(_Part):
    """LoRA (Hu et al., 2021): rank, scale, dropout, the layers that it adapts and those that are trained whole."""

    r: int = Field(ge=1)
    alpha: int = Field(ge=1)
    dropout: float = Field(default=0.05, ge=0, lt=1)
    targets: tuple[str, ...]
    whole: tuple[str, ...] = ()


class Optim(_Part):
    """How it is trained."""

    epochs: float = Field(gt=0)
    lr: float = Field(gt=0)
    batch: int = Field(ge=1)
    """Over all processes."""
    accumulation: int = Field(default=1, ge=1)
    warmup: float = Field(default=0.06, ge=0, lt=1)
    schedule: Literal["linear", "cosine", "constant"] = "linear"
    weight_decay: float = Field(default=0.01, ge=0)
    label_smoothing: float = Field(default=0.0, ge=0, lt=1)
    class_weights: bool = False
    """Weigh the classes so that both count the same."""
    precision: Literal["fp32", "fp16", "bf16"] = "fp32"
    """On a GPU; a CPU trains in fp32."""
    save_steps: int = Field(default=100, ge=1)
    """Steps between two checkpoints: what a kill can cost."""


class Targets(_Part):
    """What the thresholds are fitted to, on the validation part."""

    max_false_refusal: float = Field(default=0.01, gt=0, lt=1)
    """At most this share of related texts falls below the lower threshold."""
    max_leak: float = Field(default=0.03, gt=0, lt=1)
    """At most this share of the others reaches the upper threshold."""
    confidence: float = Field(default=0.9, gt=0, lt=1)
    """Of the bound on both shares."""


class Recipe(_Part):
    """One recipe file."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9_]*$")
    adapter: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    """Folder of the result under adapters/."""
    title: str
    topic: str
    base: Base
    license: str = "mit"
    kind: Literal["encoder", "decoder"] = "encoder"
    seed: int = 0
    window_tokens: int = Field(default=128, ge=16)
    stride_tokens: int = Field(default=32, ge=0)
    context_tokens: int = Field(default=48, ge=0)
    data: Data = Data()
    lora: Lora
    train: Optim
    targets: Targets = Targets()
    forms: tuple[Literal["fp32", "int8"], ...] = ("fp32", "int8")
    """Served forms that are calibrated."""


def load_recipe(reference: str, overrides: Sequence[str] = ()) -> tuple[Recipe, Path]:
    """A recipe by name or path, and its file. Raises `TrainingError` that names file and key."""
    path = Path(reference) if reference.endswith((".yaml", ".yml")) else RECIPES / f"{reference}.yaml"
    if not path.is_file():
        known = ", ".join(sorted(each.stem for each in RECIPES.glob("*.yaml")))
        raise TrainingError(f"no recipe {reference!r}: {path} does not exist. Known: {known}")
    values = _parse(path)
    for override in overrides:
        _override(values, override)
    try:
        return Recipe.model_validate({"name": path.stem, **values}), path
    except ValidationError as exc:
        raise TrainingError("\n".join(_explain(path, error) for error in exc.errors())) from exc


def _parse(path: Path) -> dict[str, Any]:
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as exc:
        raise TrainingError(f"{path}: not YAML: {exc}") from exc
    if not isinstance(values, dict):
        raise TrainingError(f"{path}: not a mapping of keys")
    return values


def _override(values: dict[str, Any], override: str) -> None:
    """Set `a.b=value`, the value read as YAML."""
    key, equals, text = override.partition("=")
    if not equals:
        raise TrainingError(f"--set {override}: write KEY=VALUE, for example lora.r=32")
    *path, last = key.split(".")
    for step in path:
        values = values.setdefault(step, {})
    values[last] = yaml.safe_load(text)


def _explain(path: Path, error: Any) -> str:
    key = ".".join(str(part) for part in error["loc"]) or "(top)"
    reason = "unknown key" if error["type"] == "extra_forbidden" else str(error["msg"])
    return f"{path}: {key}: {reason}"


def topic_folder(topic: str, recipe_file: Path) -> Path:
    """Folder of a topic: beside the recipe file, or in training/topics."""
    beside = recipe_file.parent / topic
    return beside if beside.is_dir() else TOPICS / topic
