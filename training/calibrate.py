"""From logits to probabilities that mean what they say, and to two thresholds that keep what was promised.

Temperature and bias are Platt scaling (Platt, 1999; targets smoothed as there, solved by Newton's method) on the validation
part, for each served form of its own. The lower threshold `not_related` is the highest one below which at most
`max_false_refusal` of the related texts fall, the upper one `related` the lowest that at most `max_leak` of the others reach;
"at most" holds for the upper confidence bound of the share (Clopper and Pearson, 1934) where there are enough texts for one,
else for the share itself. If both can be kept with room to spare (the lower would lie above the upper), both become the point
half way between, in log-odds: then nothing is unsure.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from guardrail.adapter import Calibration, Canary, Form, Manifest, load_adapter, save_manifest, sha256_of
from guardrail.scoring import Thresholds
from training.data import Example, unit_hash, write_json
from training.metrics import Bools, Floats, auroc, binomial_upper, expected_calibration_error
from training.recipe import Targets
from training.run import Run
from training.score import score_examples, truth_of

CANARIES = 8
EDGE = 1e-6
"""Thresholds stay this far from 0 and 1."""


def calibrate(run: Run, targets: Targets) -> dict[str, Any]:
    """Fit every served form on the validation part and write the manifest; returns what was fitted, by form."""
    folder = run.require_adapter()
    examples = run.examples("validation")
    truth = truth_of(examples)
    plain = _plain(load_adapter(folder).manifest)
    save_manifest(folder, plain)
    logits = {form: logit(score_examples(folder, examples, form, run.near)) for form in run.recipe.forms}
    fitted = {form: fit(values, truth, targets) for form, values in logits.items()}
    canaries = choose_canaries(examples, fitted["fp32"].probabilities(logits["fp32"]))
    report: dict[str, Any] = {form: each.report(logits[form], truth) for form, each in fitted.items()}
    save_manifest(folder, _calibrated(plain, run, targets, fitted, canaries, report))
    write_json(run.folder / "calibration.json", report)
    return report


@dataclass(frozen=True, slots=True)
class Fitted:
    """What was fitted for one form; `how` says in words what the thresholds keep."""

    temperature: float
    bias: float
    thresholds: Thresholds
    how: str

    def probabilities(self, logits: Floats) -> Floats:
        """P(related) [n]."""
        return sigmoid(logits / self.temperature + self.bias)

    def calibration(self) -> Calibration:
        """As the manifest holds it."""
        limits = self.thresholds
        return Calibration(temperature=self.temperature, bias=self.bias, not_related=limits.not_related, related=limits.related)

    def report(self, logits: Floats, truth: Bools) -> dict[str, Any]:
        """The fit and what it gives on the texts that it was fitted on."""
        scores, limits = self.probabilities(logits), self.thresholds
        return {
            **self.calibration().model_dump(),
            "how": self.how,
            "auroc": auroc(scores, truth),
            "expected_calibration_error": expected_calibration_error(scores, truth),
            "false_refusal": float((scores[truth] < limits.not_related).mean()),
            "leak": float((scores[~truth] >= limits.related).mean()),
            "unsure": float(((scores >= limits.not_related) & (scores < limits.related)).mean()),
        }


def fit(logits: Floats, truth: Bools, targets: Targets) -> Fitted:
    """Temperature, bias and thresholds of one form."""
    temperature, bias = fit_platt(logits, truth)
    thresholds, how = solve_thresholds(sigmoid(logits / temperature + bias), truth, targets)
    return Fitted(temperature, bias, thresholds, how)


def sigmoid(logits: Floats) -> Floats:
    """1 / (1 + exp(-x)) without overflow."""
    return np.exp(-np.logaddexp(0.0, -logits))


def logit(scores: Floats) -> Floats:
    """Log-odds; probabilities are kept 1e-9 away from 0 and 1."""
    clipped = np.clip(scores, 1e-9, 1 - 1e-9)
    return np.log(clipped) - np.log1p(-clipped)


def fit_platt(logits: Floats, truth: Bools, steps: int = 100) -> tuple[float, float]:
    """Temperature and bias that minimise the log loss on smoothed targets (Platt, 1999)."""
    positives, negatives = int(truth.sum()), int((~truth).sum())
    target = np.where(truth, (positives + 1) / (positives + 2), 1 / (negatives + 2))
    inputs = np.stack([logits, np.ones_like(logits)])
    weights = np.array([1.0, 0.0])
    for _ in range(steps):
        scores = sigmoid(weights @ inputs)
        gradient = inputs @ (scores - target)
        hessian = (inputs * (scores * (1 - scores) + 1e-9)) @ inputs.T + 1e-6 * np.eye(2)
        step = _damped(weights, np.linalg.solve(hessian, gradient), inputs, target)
        weights = weights - step
        if np.abs(step).max() < 1e-9:
            break
    slope = max(float(weights[0]), 1e-3)
    return 1 / slope, float(weights[1])


def _damped(weights: Floats, step: Floats, inputs: Floats, target: Floats) -> Floats:
    """The Newton step, halved until the loss does not grow."""
    before = _log_loss(weights, inputs, target)
    for _ in range(30):
        if _log_loss(weights - step, inputs, target) <= before:
            return step
        step = step / 2
    return np.zeros_like(step)


def _log_loss(weights: Floats, inputs: Floats, target: Floats) -> float:
    logits = weights @ inputs
    return float((np.logaddexp(0.0, logits) - target * logits).sum())


def solve_thresholds(scores: Floats, truth: Bools, targets: Targets) -> tuple[Thresholds, str]:
    """Both thresholds on calibrated probabilities, and in words what they keep."""
    refused, refused_how = allowed_errors(int(truth.sum()), targets.max_false_refusal, targets.confidence)
    leaked, leaked_how = allowed_errors(int((~truth).sum()), targets.max_leak, targets.confidence)
    related, others = np.sort(scores[truth]), np.sort(scores[~truth])[::-1]
    lower = float(related[refused])
    upper = float(np.nextafter(others[leaked], 1.0))
    how = f"false refusal: {refused_how}; leak: {leaked_how}"
    if lower > upper:
        middle = _edge(float(sigmoid(logit(np.array([lower, upper])).mean(keepdims=True))[0]))
        return Thresholds(middle, middle), f"{how}; both targets are kept at one point, half way between in log-odds"
    return Thresholds(_edge(lower), _edge(upper)), how


def _edge(threshold: float) -> float:
    return min(max(threshold, EDGE), 1 - EDGE)


def allowed_errors(n: int, target: float, confidence: float) -> tuple[int, str]:
    """How many of `n` texts may fall on the wrong side so that the target is kept, and how that is meant."""
    if n and binomial_upper(0, n, confidence) <= target:
        errors = next(k for k in range(n) if binomial_upper(k + 1, n, confidence) > target)
        return errors, f"at most {target:g} with {confidence:.0%} confidence ({errors} of {n})"
    errors = min(int(target * n), max(n - 1, 0))
    return errors, f"at most {target:g} as seen ({errors} of {n}; too few texts for a bound)"


def choose_canaries(examples: Sequence[Example], scores: Floats, count: int = CANARIES) -> tuple[Canary, ...]:
    """Short texts of both labels, a quarter with context, that are scored on the right side and clearly."""
    rows = sorted(zip(examples, scores, strict=True), key=lambda row: unit_hash("canary", row[0].key))
    clear = [row for row in rows if _clear(*row)]
    picked: list[tuple[Example, float]] = []
    for label in ("related", "not_related"):
        own = [row for row in clear if row[0].label == label]
        with_context = [row for row in own if row[0].context][: count // 8 or 1]
        picked += [*with_context, *[row for row in own if not row[0].context][: count // 2 - len(with_context)]]
    return tuple(Canary(input=example.input, context=example.context, score=float(score)) for example, score in picked)


def _clear(example: Example, score: float) -> bool:
    return len(example.input) < 120 and abs(example.target - score) < 0.25


def _plain(manifest: Manifest) -> Manifest:
    """The manifest with nothing fitted: its probabilities are the bare sigmoid, and no canary stops the engine."""
    return manifest.model_copy(update={"calibration": {}, "canaries": (), "targets": {}, "figures": {}})


def _calibrated(
    plain: Manifest,
    run: Run,
    targets: Targets,
    fitted: dict[Any, Fitted],
    canaries: tuple[Canary, ...],
    report: dict[str, Any],
) -> Manifest:
    kept = {"max_false_refusal": targets.max_false_refusal, "max_leak": targets.max_leak, "confidence": targets.confidence}
    calibration: dict[Form, Calibration] = {form: each.calibration() for form, each in fitted.items()}
    data = {**plain.data, "weights_sha256": sha256_of(run.adapter / "adapter_model.safetensors")}
    figures = {"validation": dict(report)}
    update = {"calibration": calibration, "targets": kept, "canaries": canaries, "data": data, "figures": figures}
    return plain.model_copy(update=update)
