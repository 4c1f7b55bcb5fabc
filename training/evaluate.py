"""How good an adapter is on labelled texts: overall and per slice, through the engine that serves it."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from guardrail.adapter import load_adapter, sha256_of
from guardrail.scoring import Thresholds
from training.data import LABELS, Example, read_jsonl, write_json, write_text
from training.metrics import (
    Bools,
    Floats,
    auroc,
    confusion,
    expected_calibration_error,
    recall_at_false_positive_rate,
)
from training.run import Run
from training.score import ServedForm, score_examples, truth_of
from training.topic import read_messages

RATES = (0.01, 0.03, 0.05, 0.1)
"""False-positive rates at which recall is reported."""
WORST = 10


def evaluate(run: Run, on: Path | None, form: ServedForm) -> dict[str, Any]:
    """Figures on a JSONL file or a folder of message files, or on the test part; also written to the run's folder."""
    adapter = load_adapter(run.require_adapter())
    path = on or run.file("test")
    examples = read_messages(path) if path.is_dir() else read_jsonl(path) if on else run.examples("test")
    scores = score_examples(run.adapter, examples, form, run.near)
    report = {
        "adapter": {"name": run.recipe.adapter, "version": adapter.version},
        "form": form,
        "data": {"name": path.stem, "texts": len(examples), "sha256": _sha256(path)},
        "command": f"python -m training evaluate {run.recipe.name}{_option(run, on)} --form {form}",
        **figures_of(examples, scores, adapter.manifest.calibrated(form).thresholds()),
    }
    target = run.folder / "evaluate" / f"{path.stem}-{form}"
    write_json(target.with_suffix(".json"), report)
    write_text(target.with_suffix(".md"), to_markdown(report))
    return report


def bench_of(run: Run) -> Path:
    """The folder of the topic's own benchmark, which is never trained on."""
    return run.topic(run.recipe.topic) / "bench"


def _option(run: Run, on: Path | None) -> str:
    if on is None:
        return ""
    return " --bench" if on == bench_of(run) else f" --on {on.name}"


def _sha256(path: Path) -> str:
    """Of a file, or over the files of a folder in the order of their names."""
    if not path.is_dir():
        return sha256_of(path)
    return hashlib.sha256("".join(sha256_of(file) for file in sorted(path.glob("*.txt"))).encode()).hexdigest()


def figures_of(examples: Sequence[Example], scores: Floats, thresholds: Thresholds) -> dict[str, Any]:
    """All figures: overall, by slice, register and source, and the worst errors."""
    truth = truth_of(examples)
    groups: dict[str, Callable[[Example], str]] = {
        "slice": lambda example: example.area,
        "register": lambda example: example.register,
        "source": lambda example: example.source,
        "context": lambda example: "with context" if example.context else "",
    }
    by = {name: _grouped(examples, key, scores, truth, thresholds) for name, key in groups.items()}
    return {
        "overall": overall(scores, truth, thresholds),
        "by": {name: rows for name, rows in by.items() if rows},
        "worst": _worst(examples, scores, truth),
    }


def overall(scores: Floats, truth: Bools, thresholds: Thresholds) -> dict[str, Any]:
    """The figures of one set of texts; verdicts as `Thresholds.predicted` gives them, in the middle of the unsure band."""
    counts = confusion(scores, truth, (thresholds.not_related + thresholds.related) / 2)
    recalls = {f"{rate:g}": recall_at_false_positive_rate(scores, truth, rate)[0] for rate in RATES}
    return {
        "n": counts.n,
        "related": int(truth.sum()),
        "accuracy": counts.accuracy,
        "balanced_accuracy": counts.balanced_accuracy,
        "auroc": auroc(scores, truth),
        "expected_calibration_error": expected_calibration_error(scores, truth),
        "recall_at_false_positive_rate": recalls,
        "by_class": counts.by_class(),
        "confusion": {
            "related": {"related": counts.true_positive, "not_related": counts.false_negative},
            "not_related": {"related": counts.false_positive, "not_related": counts.true_negative},
        },
        "thresholds": {"not_related": thresholds.not_related, "related": thresholds.related},
        "false_refusal": float((scores[truth] < thresholds.not_related).mean()) if truth.any() else None,
        "leak": float((scores[~truth] >= thresholds.related).mean()) if (~truth).any() else None,
        "unsure": float(((scores >= thresholds.not_related) & (scores < thresholds.related)).mean()),
    }


def _grouped(
    examples: Sequence[Example], key: Callable[[Example], str], scores: Floats, truth: Bools, thresholds: Thresholds
) -> dict[str, dict[str, Any]]:
    """Accuracy and false verdicts of every group that has a name."""
    places: dict[str, list[int]] = defaultdict(list)
    for index, example in enumerate(examples):
        if key(example):
            places[key(example)].append(index)
    return {name: _group(scores[at], truth[at], thresholds) for name, at in sorted(places.items())}


def _group(scores: Floats, truth: Bools, thresholds: Thresholds) -> dict[str, Any]:
    counts = confusion(scores, truth, (thresholds.not_related + thresholds.related) / 2)
    bands = [thresholds.band(float(score)).value for score in scores]
    return {
        "n": counts.n,
        "related": int(truth.sum()),
        "accuracy": counts.accuracy,
        "balanced_accuracy": counts.balanced_accuracy,
        "false_negatives": counts.false_negative,
        "false_positives": counts.false_positive,
        "auroc": auroc(scores, truth) if 0 < truth.sum() < len(truth) else None,
        "mean_score": float(scores.mean()),
        "bands": {band: bands.count(band) for band in ("related", "unsure", "not_related")},
    }


def _worst(examples: Sequence[Example], scores: Floats, truth: Bools) -> list[dict[str, Any]]:
    """Where the examples lie that are furthest from their label; by position, as texts may be others' property."""
    order = np.argsort(-np.abs(scores - truth), kind="stable")[:WORST]
    return [{"row": int(at) + 1, "label": examples[at].label, "score": float(scores[at])} for at in order]


def show(report: Mapping[str, Any], console: Console) -> None:
    """The report on a terminal."""
    console.print(
        f"[bold]{report['adapter']['name']}[/bold] {report['form']} on {report['data']['name']}, {report['data']['texts']} texts"
    )
    head = Table("figure", "value", title=None)
    for name, value in headline(report["overall"]):
        head.add_row(name, value)
    console.print(head)
    table = Table("slice", "n", "accuracy", "missed", "let in", "mean score")
    for name, row in report["by"].get("slice", {}).items():
        table.add_row(*_cells(name, row))
    console.print(table)


def headline(figures: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Name and value of the main figures, to be read by a person."""
    yield "accuracy", _percent(figures["accuracy"])
    yield "balanced accuracy", _percent(figures["balanced_accuracy"])
    yield "AUROC", f"{figures['auroc']:.4f}"
    yield "expected calibration error (15 bins)", f"{figures['expected_calibration_error']:.3f}"
    for label in reversed(LABELS):
        row = figures["by_class"][label]
        yield f"{label}: precision, recall, F1", ", ".join(_percent(row[key]) for key in ("precision", "recall", "f1"))
    for truth in reversed(LABELS):
        row = figures["confusion"][truth]
        yield f"{truth}: judged related, not related", f"{row['related']}, {row['not_related']}"
    for rate, recall in figures["recall_at_false_positive_rate"].items():
        yield f"recall at {float(rate):.0%} false positives", _percent(recall)
    yield "thresholds", f"{figures['thresholds']['not_related']:.3f}, {figures['thresholds']['related']:.3f}"
    yield (
        "related texts refused, others let in, unsure",
        ", ".join(_percent(figures[key]) for key in ("false_refusal", "leak", "unsure")),
    )


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f} %"


def _cells(name: str, row: Mapping[str, Any]) -> tuple[str, ...]:
    return (
        name,
        str(row["n"]),
        _percent(row["accuracy"]),
        str(row["false_negatives"]),
        str(row["false_positives"]),
        f"{row['mean_score']:.3f}",
    )


def to_markdown(report: Mapping[str, Any]) -> str:
    """The report as Markdown."""
    return "\n".join(_markdown_lines(report)) + "\n"


def _markdown_lines(report: Mapping[str, Any]) -> Iterator[str]:
    yield f"# {report['adapter']['name']} ({report['form']}) on {report['data']['name']}\n"
    yield f"{report['data']['texts']} texts. Made by `{report['command']}`.\n"
    yield from ("| figure | value |", "|---|---|")
    yield from (f"| {name} | {value} |" for name, value in headline(report["overall"]))
    for group, rows in report["by"].items():
        yield from (
            "",
            f"## By {group}",
            "",
            "| | n | accuracy | missed | let in | mean score |",
            "|---|---:|---:|---:|---:|---:|",
        )
        yield from (f"| {' | '.join(_cells(name, row))} |" for name, row in rows.items())
