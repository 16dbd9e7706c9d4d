"""Every figure against a number worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest

from hpcspec.evaluate import metrics

TRUTH = np.zeros(5)
VALUE = np.array([-2.0, 0.0, 1.0, 2.0, 9.0])  # median 1, absolute deviations 3 1 0 1 8, mean 2


def test_regression() -> None:
    found = metrics.regression(TRUTH, VALUE)
    assert found["MAD"] == pytest.approx(1.4826, rel=1e-4) and found["bias"] == 1
    assert found["std"] == pytest.approx(np.sqrt((16 + 4 + 1 + 0 + 49) / 5))


def test_coverage_and_bound() -> None:
    found = metrics.coverage(TRUTH, VALUE, np.ones(5))
    assert found == {"cover 68 %": 0.4, "cover 95 %": 0.4} and metrics.coverage(TRUTH, VALUE, 2 * np.ones(5))["cover 95 %"] == 0.8
    assert metrics.coverage(TRUTH, VALUE, np.ones(5), np.full(5, 1e9)) == {"cover 68 %": 0.4, "cover 95 %": 1.0}
    assert metrics.bound_ratio(TRUTH, VALUE, np.full(5, 0.5))["scatter / bound"] == pytest.approx(2 * 1.4826, rel=1e-4)


def test_classification() -> None:
    truth, predicted = np.array(["a", "a", "a", "b"]), np.array(["a", "a", "b", "b"])
    found = metrics.classification(truth, predicted)
    assert found["accuracy"] == 0.75 and found["balanced accuracy"] == pytest.approx((2 / 3 + 1) / 2)
    assert found["macro-F1"] == pytest.approx((2 * (1 * 2 / 3) / (1 + 2 / 3) + 2 * (0.5 * 1) / 1.5) / 2)
    foreign = metrics.classification(truth, np.array(["a", "a", "c", ""]))  # a class that doesn't occur, and none
    assert foreign["accuracy"] == 0.5 and foreign["balanced accuracy"] == pytest.approx(1 / 3)


def test_redshift() -> None:
    truth = np.array([0.0, 1.0, 1.0])
    found = metrics.redshift(truth, truth + np.array([0.001, 0.004, 0.02]))  # over 1 + z: 0.001, 0.002, 0.01
    assert found["NMAD"] == pytest.approx(1.4826 * 0.001, rel=1e-4) and found["outliers"] == pytest.approx(1 / 3)


def test_reduced_chi2() -> None:
    flux, ivar = np.array([1.0, 2.0, 3.0, 99.0]), np.array([1.0, 4.0, 1.0, 0.0])
    assert metrics.reduced_chi2(flux, np.zeros(4) + 1, ivar) == pytest.approx((0 + 4 + 4) / 3)
    assert metrics.reduced_chi2(flux, np.zeros(4) + 1, ivar, 1) == pytest.approx(4)
    assert np.isnan(metrics.reduced_chi2(flux, flux, np.zeros(4)))


def test_retrieval() -> None:
    vectors = np.array([[1, 0], [1, 0.1], [0, 1], [0.1, 1], [-1, 0]])
    assert metrics.retrieval(vectors, np.array(["a", "a", "b", "b", "alone"])) == 1
    assert metrics.retrieval(vectors, np.array(["a", "b", "a", "b", "alone"])) == 0
    assert metrics.retrieval(vectors, np.array(["a", "b", "a", "b", "alone"]), 3) == 1
    assert np.isnan(metrics.retrieval(vectors, np.arange(5)))
    same = np.ones((3, 2))  # equal vectors: nobody finds itself
    assert metrics.retrieval(same, np.array(["a", "a", "b"]), 2) == 1
    assert metrics.retrieval(vectors[:2], np.array([1, 2]), 1, (vectors[2:], np.array([1, 2, 3]))) == 0.5


def test_ranking_and_seeds() -> None:
    score, true = np.array([0.9, 0.1, 0.8, 0.3]), np.array([True, False, False, True])
    assert metrics.precision_at(score, true, 2) == 0.5 and metrics.auroc(score, true) == 0.75
    assert metrics.over_seeds([1, 3]) == (2, pytest.approx(np.sqrt(2))) and np.isnan(metrics.over_seeds([1])[1])


def test_purity_and_chi2_of_each() -> None:
    assert metrics.purity(np.array([0, 0, 1, 1, 1]), np.array([0, 0, 0, 1, 1])) == pytest.approx((2 + 2) / 5)
    value, model = np.array([[1.0, 2.0, np.nan], [0.0, 0.0, 0.0]]), np.zeros((2, 3))
    found = metrics.chi2_each(value, model, np.array([[1.0, 0.5, 1.0], [0.0, np.nan, 0.0]]))
    assert found[0] == pytest.approx((1 + 16) / 2) and np.isnan(found[1])
