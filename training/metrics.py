"""Figures of a binary classifier, as pure functions of P(related) and the truth.

`scores` is an array of probabilities [n], `truth` an array of booleans [n], true for `related`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Confusion:
    """Counts of a verdict against the truth; `true_positive` is related and found."""

    true_positive: int
    false_positive: int
    false_negative: int
    true_negative: int

    @property
    def accuracy(self) -> float:
        """Share of right verdicts."""
        return _ratio(self.true_positive + self.true_negative, self.n)

    @property
    def n(self) -> int:
        """Texts counted."""
        return self.true_positive + self.false_positive + self.false_negative + self.true_negative

    @property
    def recall(self) -> float:
        """Share of related texts that were found; nan without any."""
        return _ratio(self.true_positive, self.true_positive + self.false_negative)

    @property
    def specificity(self) -> float:
        """Share of the other texts that were found; nan without any."""
        return _ratio(self.true_negative, self.true_negative + self.false_positive)

    @property
    def balanced_accuracy(self) -> float:
        """Mean recall of the classes that occur."""
        return float(np.nanmean([self.recall, self.specificity]))

    def by_class(self) -> dict[str, dict[str, float]]:
        """Precision, recall, F1 and count of each label; 0 where a ratio has no denominator."""
        tp, fp, fn, tn = self.true_positive, self.false_positive, self.false_negative, self.true_negative
        return {"related": _class(tp, fp, fn), "not_related": _class(tn, fn, fp)}


def _ratio(part: int, whole: int) -> float:
    return part / whole if whole else math.nan


def _class(hit: int, wrong: int, missed: int) -> dict[str, float]:
    precision = hit / (hit + wrong) if hit + wrong else 0.0
    recall = hit / (hit + missed) if hit + missed else 0.0
    f1 = 2 * hit / (2 * hit + wrong + missed) if hit + wrong + missed else 0.0
    return {"precision": precision, "recall": recall, "f1": f1, "count": hit + missed}


def confusion(scores: Floats, truth: Bools, threshold: float) -> Confusion:
    """Verdicts `score >= threshold` against the truth."""
    said = scores >= threshold
    return Confusion(
        int((said & truth).sum()), int((said & ~truth).sum()), int((~said & truth).sum()), int((~said & ~truth).sum())
    )


def auroc(scores: Floats, truth: Bools) -> float:
    """Area under the ROC curve: the chance that a related text scores above another, ties half (Mann-Whitney U).

    nan with one class only.
    """
    positives, negatives = int(truth.sum()), int((~truth).sum())
    if not positives or not negatives:
        return math.nan
    _, inverse, counts = np.unique(scores, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[inverse]
    return float((ranks[truth].sum() - positives * (positives + 1) / 2) / (positives * negatives))


def expected_calibration_error(scores: Floats, truth: Bools, bins: int = 15) -> float:
    """Mean distance of P(related) from the share of related texts over equally wide bins, weighed (Naeini et al., 2015)."""
    index = np.minimum((scores * bins).astype(int), bins - 1)
    gaps = [abs(float(scores[index == each].sum() - truth[index == each].sum())) for each in range(bins)]
    return sum(gaps) / len(scores) if len(scores) else math.nan


def recall_at_false_positive_rate(scores: Floats, truth: Bools, rate: float) -> tuple[float, float]:
    """The highest recall of related texts with at most `rate` of the others at or above the threshold, and that threshold."""
    negatives = np.sort(scores[~truth])[::-1]
    if not len(negatives) or not truth.any():
        return math.nan, math.nan
    allowed = math.floor(rate * len(negatives) + 1e-9)
    threshold = float(np.nextafter(negatives[allowed], 2.0)) if allowed < len(negatives) else 0.0
    return float((scores[truth] >= threshold).mean()), threshold


def binomial_upper(hits: int, n: int, confidence: float) -> float:
    """Upper bound of a share that was seen `hits` times in `n`, one-sided (Clopper and Pearson, 1934).

    The bound is the beta quantile with `hits + 1` and `n - hits`: the p with P(X <= hits) = 1 - confidence, found by bisection.
    """
    if hits >= n:
        return 1.0
    low, high = hits / n, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if _binomial_cdf(hits, n, middle) > 1 - confidence else (low, middle)
    return high


def _binomial_cdf(hits: int, n: int, p: float) -> float:
    if p >= 1.0:
        return 0.0
    logs = (
        math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1) + k * math.log(p) + (n - k) * math.log1p(-p)
        for k in range(hits + 1)
    )
    return sum(math.exp(each) for each in logs) if p > 0 else 1.0
