"""The adapters that come with guardrail: what their compiled form promises, on the topic's hand-written messages."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from guardrail.adapter import Adapter, Form, find_adapter, load_adapter
from guardrail.engine.engine import open_engine
from guardrail.scoring import Band
from training.data import Example
from training.metrics import auroc
from training.topic import read_messages

TOPICS = Path(__file__).parents[2] / "training/topics"
TEXTS = 300


def scores_of(adapter: Adapter, examples: list[Example], form: Form) -> tuple[list[float], list[Band]]:
    engine = open_engine({"topic": adapter}, device="cpu", form=form, queue_limit=TEXTS)
    try:
        waiting = [engine.submit(example.turn) for example in examples]
        scores = [future.result(60)["topic"].low for future in waiting]
        return scores, [engine.topics["topic"].thresholds.band(score) for score in scores]
    finally:
        engine.close()


@pytest.mark.parametrize("name", ["star-trek-minilm"])
def test_compiled_form_agrees_with_fp32(name: str) -> None:
    """AUROC within 0.002, mean |dp| at most 0.01, at most 1 % in another band; each form with its own calibration."""
    adapter = load_adapter(find_adapter(name))
    examples = list(read_messages(TOPICS / adapter.manifest.topic / "messages"))
    examples = examples[:: len(examples) // TEXTS][:TEXTS]
    truth = np.array([example.label == "related" for example in examples])
    (fp32, bands), (served, served_bands) = (scores_of(adapter, examples, form) for form in ("fp32", "int8"))
    assert 0.2 < truth.mean() < 0.8
    assert abs(auroc(np.array(fp32), truth) - auroc(np.array(served), truth)) <= 0.002
    assert 0 < np.abs(np.subtract(fp32, served)).mean() <= 0.01
    assert np.mean([one is not other for one, other in zip(bands, served_bands, strict=True)]) <= 0.01
    assert set(bands) == set(Band)
