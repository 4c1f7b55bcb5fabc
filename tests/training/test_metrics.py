from __future__ import annotations

import math

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.stats import beta
from sklearn.calibration import calibration_curve
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import confusion_matrix, precision_recall_fscore_support, roc_auc_score, roc_curve

from guardrail.scoring import Thresholds
from training.calibrate import allowed_errors, fit_platt, logit, sigmoid, solve_thresholds
from training.metrics import auroc, binomial_upper, confusion, expected_calibration_error, recall_at_false_positive_rate
from training.recipe import Targets

Sample = tuple[NDArray[np.float64], NDArray[np.bool_]]


@pytest.fixture(params=range(5))
def sample(request: pytest.FixtureRequest) -> Sample:
    """Scores with many ties, and a truth that they only hint at."""
    chance = np.random.default_rng(request.param)
    truth = chance.random(400) < 0.4
    return np.round(np.clip(chance.normal(0.4 + 0.25 * truth, 0.2), 0, 1), 2), truth


def test_auroc_is_scikit_learns(sample: Sample) -> None:
    """Ties count half, as in scikit-learn."""
    assert auroc(*sample) == pytest.approx(roc_auc_score(sample[1], sample[0]))


def test_auroc_needs_both_classes() -> None:
    """With one class there is no curve."""
    assert math.isnan(auroc(np.array([0.1, 0.2]), np.array([True, True])))


def test_confusion_is_scikit_learns(sample: Sample) -> None:
    """Counts, precision, recall and F1 of both classes agree."""
    scores, truth = sample
    counts = confusion(scores, truth, 0.5)
    assert confusion_matrix(truth, scores >= 0.5).ravel().tolist() == [
        counts.true_negative,
        counts.false_positive,
        counts.false_negative,
        counts.true_positive,
    ]
    columns = precision_recall_fscore_support(truth, scores >= 0.5)
    for index, label in enumerate(("not_related", "related")):
        expected = [float(column[index]) for column in columns]
        assert list(counts.by_class()[label].values()) == pytest.approx(expected)


def test_calibration_error_is_that_of_the_reliability_curve(sample: Sample) -> None:
    """The weighed gaps of scikit-learn's curve over the same bins."""
    scores, truth = np.clip(sample[0] + 1e-6, 0, 1), sample[1]
    share, mean = calibration_curve(truth, scores, n_bins=15)
    counts = np.histogram(scores, np.linspace(0, 1, 16))[0]
    expected = float((np.abs(share - mean) * counts[counts > 0]).sum() / len(scores))
    assert expected_calibration_error(scores, truth) == pytest.approx(expected)


@pytest.mark.parametrize("rate", [0.0, 0.01, 0.1, 1.0])
def test_recall_at_rate_is_the_best_point_of_the_roc_curve(sample: Sample, rate: float) -> None:
    """No point of scikit-learn's curve within the rate has a higher recall, and the threshold keeps the rate."""
    scores, truth = sample
    recall, threshold = recall_at_false_positive_rate(scores, truth, rate)
    false, true, _ = roc_curve(truth, scores, drop_intermediate=False)
    assert recall == pytest.approx(true[false <= rate + 1e-12].max())
    assert (scores[~truth] >= threshold).mean() <= rate + 1e-12


@pytest.mark.parametrize(("hits", "n"), [(0, 10), (3, 300), (20, 400), (399, 400)])
def test_binomial_bound_is_the_beta_quantile(hits: int, n: int) -> None:
    """Clopper-Pearson's one-sided upper limit."""
    assert binomial_upper(hits, n, 0.95) == pytest.approx(float(beta.ppf(0.95, hits + 1, n - hits)), abs=1e-9)
    assert binomial_upper(n, n, 0.95) == 1.0


def test_platt_scaling_is_logistic_regression() -> None:
    """On many texts the smoothed targets make no difference: the fit is that of an unpenalised logistic regression."""
    chance = np.random.default_rng(3)
    truth = chance.random(20_000) < 0.3
    logits = chance.normal(np.where(truth, 3.0, -2.0), 3.0)
    temperature, bias = fit_platt(logits, truth)
    expected = LogisticRegression(C=1e9).fit(logits[:, None], truth)
    assert 1 / temperature == pytest.approx(float(expected.coef_[0, 0]), rel=0.02)
    assert bias == pytest.approx(float(expected.intercept_[0]), abs=0.02)


def test_platt_scaling_survives_perfect_separation() -> None:
    """Even where no text is on the wrong side the temperature stays finite and the order is kept."""
    logits = np.array([-30.0, -25.0, 25.0, 30.0])
    temperature, bias = fit_platt(logits, np.array([False, False, True, True]))
    scores = sigmoid(logits / temperature + bias)
    assert 0 < temperature < math.inf
    assert (np.diff(scores) > 0).all()


def test_logit_inverts_sigmoid() -> None:
    """Log-odds and probability are the same number in two forms."""
    values = np.linspace(-18, 18, 37)
    assert logit(sigmoid(values)) == pytest.approx(values, abs=1e-6)


@pytest.mark.parametrize("seed", range(8))
def test_thresholds_keep_both_targets(seed: int) -> None:
    """On the texts that they were fitted to, the upper bound of both error shares is within its target."""
    chance = np.random.default_rng(seed)
    truth = chance.random(3000) < 0.4
    scores = sigmoid(chance.normal(np.where(truth, 2.0, -2.0), 1.2 + 0.3 * seed))
    targets = Targets(max_false_refusal=0.02, max_leak=0.05, confidence=0.9)
    thresholds, _ = solve_thresholds(scores, truth, targets)
    refused, let_in = int((scores[truth] < thresholds.not_related).sum()), int((scores[~truth] >= thresholds.related).sum())
    assert binomial_upper(refused, int(truth.sum()), 0.9) <= 0.02
    assert binomial_upper(let_in, int((~truth).sum()), 0.9) <= 0.05


def test_thresholds_are_as_wide_as_the_targets_allow() -> None:
    """One more error on either side would break the target: the unsure band is no wider than it must be."""
    chance = np.random.default_rng(1)
    truth = chance.random(3000) < 0.5
    scores = sigmoid(chance.normal(np.where(truth, 1.0, -1.0), 1.5))
    thresholds, how = solve_thresholds(scores, truth, Targets())
    refused, let_in = int((scores[truth] < thresholds.not_related).sum()), int((scores[~truth] >= thresholds.related).sum())
    assert thresholds.not_related < thresholds.related
    assert binomial_upper(refused + 1, int(truth.sum()), 0.9) > 0.01
    assert binomial_upper(let_in + 1, int((~truth).sum()), 0.9) > 0.03
    assert "with 90% confidence" in how


def test_crossing_thresholds_become_one_point() -> None:
    """Where both targets are kept with room to spare nothing is unsure, and that is said."""
    truth = np.arange(1000) % 2 == 0
    scores = np.where(truth, 0.99, 0.01) + np.linspace(-0.005, 0.005, 1000)
    thresholds, how = solve_thresholds(scores, truth, Targets())
    assert thresholds.not_related == thresholds.related == pytest.approx(0.5, abs=0.05)
    assert "half way between" in how


def test_too_few_texts_for_a_bound_are_said() -> None:
    """With 50 texts no share of 1 % can be bounded: the share itself is kept, in words too."""
    assert allowed_errors(50, 0.01, 0.9) == (0, "at most 0.01 as seen (0 of 50; too few texts for a bound)")
    assert isinstance(solve_thresholds(np.array([0.2, 0.9]), np.array([False, True]), Targets())[0], Thresholds)
