"""The model card `adapters/NAME/README.md`: figures from the files that `evaluate` wrote, with the command for each."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from guardrail.adapter import Manifest, load_adapter
from training.data import write_text
from training.errors import TrainingError
from training.evaluate import headline
from training.names import PARTS
from training.run import Run


def write_card(run: Run) -> Path:
    """Write the model card. Raises `TrainingError` if the adapter was not measured since it was trained or calibrated."""
    adapter = load_adapter(run.require_adapter())
    reports = [report for report in _reports(run.folder / "evaluate") if report["adapter"]["version"] == adapter.version]
    if not reports:
        raise TrainingError(f"{run.adapter} has not been measured as it is. Fix: python -m training evaluate {run.recipe.name}")
    path = run.adapter / "README.md"
    write_text(path, "\n".join(_lines(run, adapter.manifest, reports)) + "\n")
    return path


def _reports(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*.json"))]


def _lines(run: Run, manifest: Manifest, reports: list[dict[str, Any]]) -> Iterator[str]:
    recipe = run.recipe
    yield from _front_matter(run)
    yield f"# {recipe.title}\n"
    yield f"Tells whether a chat turn is about `{recipe.topic}`. LoRA on {recipe.base.id}; labels `not_related` 0, `related` 1.\n"
    yield from ("## Use", "", "```yaml", "# guardrail.yaml", "topics:", f"  {recipe.topic}: {{adapter: {recipe.adapter}}}")
    yield from (f"allow: [{recipe.topic}]", "```", "", "```", f"guardrail score --adapter {recipe.adapter} texts.jsonl", "```")
    yield from ("", "## Figures", "")
    for report in reports:
        yield from _figures(report)
    yield from _calibration(manifest)
    yield from _training(run)
    yield from _limits(recipe.topic)


def _front_matter(run: Run) -> Iterator[str]:
    recipe = run.recipe
    yield from ("---", f"license: {recipe.license}", f"base_model: {recipe.base.id}", "library_name: peft")
    yield from ("pipeline_tag: text-classification", "language: en", f"tags: [guardrail, lora, {recipe.topic}]", "---", "")


def _figures(report: Mapping[str, Any]) -> Iterator[str]:
    yield f"### {report['data']['name']}, {report['data']['texts']} texts, {report['form']}\n"
    yield from ("| figure | value |", "|---|---|")
    yield from (f"| {name} | {value} |" for name, value in headline(report["overall"]))
    yield from ("", f"Made by `{report['command']}` (data SHA-256 `{report['data']['sha256'][:12]}`).", "")


def _calibration(manifest: Manifest) -> Iterator[str]:
    yield from ("## Calibration", "", "Platt scaling and thresholds, fitted on the validation part for each served form.", "")
    yield from (
        "| form | temperature | bias | not_related | related | what the thresholds keep |",
        "|---|---:|---:|---:|---:|---|",
    )
    for form, each in manifest.calibration.items():
        how = manifest.figures["validation"][form]["how"]
        yield f"| {form} | {each.temperature:.3f} | {each.bias:.3f} | {each.not_related:.4f} | {each.related:.4f} | {how} |"
    yield ""


def _training(run: Run) -> Iterator[str]:
    recipe = run.recipe
    log = json.loads((run.folder / "train.json").read_text(encoding="utf-8"))
    data = json.loads((run.folder / "data.json").read_text(encoding="utf-8"))
    lora, how = recipe.lora, recipe.train
    counts = ", ".join(f"{part} {data['parts'][part]['examples']}" for part in PARTS)
    yield from ("## Training", "", f"`python -m training all {recipe.name}`, seed {recipe.seed}.", "")
    yield f"- Data: hand-written messages and composed facts; {counts}; parts disjoint by name and by template."
    yield f"- LoRA: r {lora.r}, alpha {lora.alpha}, dropout {lora.dropout} on {', '.join(lora.targets)}."
    yield f"- Trained whole: {', '.join(lora.whole)}."
    yield f"- AdamW, lr {how.lr:g}, {how.schedule}, batch {how.batch} x {how.accumulation}, {how.epochs:g} epochs."
    yield f"- {log['seconds']:.0f} s with {log['processes']} processes of one thread, {log['steps']} steps."
    yield f"- {', '.join(f'{name} {number}' for name, number in log['versions'].items())}.\n"


def _limits(topic: str) -> Iterator[str]:
    yield from ("## Limits", "")
    yield "English first. It judges what a text is about, not whether it is harmful."
    yield f"What counts as `{topic}` is settled in `training/topics/{topic}/GUIDE.md`."
