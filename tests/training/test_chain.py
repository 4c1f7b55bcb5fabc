from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from guardrail.adapter import load_adapter, sha256_of
from training.calibrate import calibrate
from training.card import write_card
from training.data import read_jsonl, write_jsonl
from training.errors import TrainingError
from training.evaluate import evaluate
from training.recipe import Targets
from training.run import Run
from training.score import score_examples

pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")


@pytest.fixture(scope="module")
def calibrated(trained: Run, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A copy of the trained run, calibrated for fp32 and int8."""
    folder = tmp_path_factory.mktemp("calibrated")
    run = Run(trained.recipe, trained.recipe_file, folder / "run", folder / "chess-tiny")
    shutil.copytree(trained.folder, run.folder, ignore=shutil.ignore_patterns("checkpoints", "adapters"))
    shutil.copytree(trained.adapter, run.adapter)
    calibrate(run, Targets(max_false_refusal=0.2, max_leak=0.2))
    return run


def test_manifest_holds_what_was_fitted(calibrated: Run) -> None:
    """Every served form has its own calibration; targets, hashes and canaries stand beside it."""
    manifest = load_adapter(calibrated.adapter).manifest
    assert set(manifest.calibration) == {"fp32", "int8"}
    assert manifest.calibration["fp32"] != manifest.calibration["int8"]
    assert manifest.targets == {"max_false_refusal": 0.2, "max_leak": 0.2, "confidence": 0.9}
    assert manifest.data["train_sha256"] == sha256_of(calibrated.file("train"))
    assert manifest.data["weights_sha256"] == sha256_of(calibrated.adapter / "adapter_model.safetensors")
    assert {canary.score > 0.5 for canary in manifest.canaries} == {True, False}


def test_canaries_are_scored_as_the_manifest_says(calibrated: Run) -> None:
    """The engine opens with the canaries, and gives them the recorded scores."""
    canaries = load_adapter(calibrated.adapter).manifest.canaries
    examples = [
        example for example in calibrated.examples("validation") if example.input in {canary.input for canary in canaries}
    ]
    again = dict(
        zip(
            [(example.input, example.context) for example in examples],
            score_examples(calibrated.adapter, examples, "fp32"),
            strict=True,
        )
    )
    for canary in canaries:
        assert again[canary.input, canary.context] == pytest.approx(canary.score, abs=1e-3)


def test_calibrating_again_changes_nothing(calibrated: Run) -> None:
    """What was fitted before does not leak into the next fit."""
    before = (calibrated.adapter / "guardrail.json").read_text()
    calibrate(calibrated, Targets(max_false_refusal=0.2, max_leak=0.2))
    assert (calibrated.adapter / "guardrail.json").read_text() == before


def test_evaluation_counts_every_text(calibrated: Run) -> None:
    """The confusion matrix and the slices each add up to the test part; the report is kept as JSON and Markdown."""
    report = evaluate(calibrated, None, "int8")
    overall, n = report["overall"], len(calibrated.examples("test"))
    assert sum(sum(row.values()) for row in overall["confusion"].values()) == n
    assert sum(row["n"] for row in report["by"]["slice"].values()) == n
    assert json.loads((calibrated.folder / "evaluate" / "test-int8.json").read_text()) == report
    assert "| AUROC |" in (calibrated.folder / "evaluate" / "test-int8.md").read_text()


def test_evaluation_on_a_file_keeps_its_texts_out_of_the_report(calibrated: Run, tmp_path: Path) -> None:
    """Somebody's labelled JSONL is measured, and neither its texts nor its folder stand in the report."""
    path = tmp_path / "elsewhere.jsonl"
    write_jsonl(path, read_jsonl(calibrated.file("test"))[:12])
    report = evaluate(calibrated, path, "fp32")
    assert report["data"]["texts"] == 12
    told = json.dumps(report)
    assert str(tmp_path) not in told
    assert not any(example.input in told for example in read_jsonl(path) if len(example.input) > 12)


def test_card_shows_the_measured_figures_and_their_command(calibrated: Run) -> None:
    """The model card's figures are those of evaluate's files."""
    report = evaluate(calibrated, None, "fp32")
    card = write_card(calibrated).read_text()
    assert f"| AUROC | {report['overall']['auroc']:.4f} |" in card
    assert "python -m training evaluate tiny --form fp32" in card
    assert card.startswith("---\nlicense: mit\nbase_model: sentence-transformers/all-MiniLM-L6-v2\n")


def test_card_refuses_figures_of_another_adapter(calibrated: Run, tmp_path: Path) -> None:
    """An adapter that changed since it was measured gets no card."""
    run = Run(calibrated.recipe, calibrated.recipe_file, calibrated.folder, tmp_path / "chess-tiny")
    shutil.copytree(calibrated.adapter, run.adapter)
    manifest = run.adapter / "guardrail.json"
    manifest.write_text(manifest.read_text().replace('"seed": 4', '"seed": 5'))
    with pytest.raises(TrainingError, match="has not been measured as it is"):
        write_card(run)
