"""Standardisation and the Gaussian of the data."""

import numpy as np
import pytest

from numpyro_rtk.training.standardise import (
    fit_gaussian,
    fit_loc_and_scale,
    shrink_variances,
)


def test_scale_of_each_coordinate_or_one_for_all():
    rng = np.random.default_rng(0)
    samples = rng.normal(size=(1000, 2)) * [1.0, 10.0] + [5.0, -3.0]
    loc, scale = fit_loc_and_scale(samples, "coordinate")
    np.testing.assert_allclose(loc, samples.mean(0))
    np.testing.assert_allclose(scale, samples.std(0))
    _, scale = fit_loc_and_scale(samples, "global")
    np.testing.assert_allclose(scale, np.sqrt(np.mean(samples.var(0))) * np.ones(2))


def test_scale_in_the_units_of_another_density():
    """One factor for all: the noise is the other's, at another level."""
    samples = np.random.default_rng(0).normal(size=(500, 2)) * [1.0, 6.0] + [3.0, 0.0]
    units = np.array([1.0, 2.0])
    loc, scale = fit_loc_and_scale(samples, "coordinate", units=units)
    np.testing.assert_allclose(loc, samples.mean(axis=0))
    np.testing.assert_allclose(scale / units, scale[0])
    np.testing.assert_allclose(np.mean((samples.std(axis=0) / scale) ** 2), 1.0)


def test_base_has_the_covariance_of_the_data():
    rng = np.random.default_rng(0)
    root = np.array([[1.0, 0.0], [0.8, 0.6]])
    z = rng.normal(size=(20_000, 2)) @ root.T
    base = fit_gaussian(z)
    covariance = np.asarray(base.axes * base.variances @ base.axes.T)
    # 5 standard errors of a covariance of size 1: 5 * sqrt(2 / n) = 0.05
    np.testing.assert_allclose(covariance, root @ root.T, atol=0.05)


@pytest.mark.parametrize(("n", "d"), [(10, 30), (20, 20)])
def test_few_rows_leave_no_axis_without_variance(n, d):
    z = np.random.default_rng(0).normal(size=(n, d))
    z -= z.mean(0)
    variances = np.maximum(np.linalg.eigvalsh(z.T @ z / n), 0.0)
    assert variances.min() < 1e-10
    shrunk = shrink_variances(z, variances)
    np.testing.assert_allclose(shrunk.sum(), variances.sum())
    assert shrunk.min() > 0.2


def test_many_rows_are_hardly_shrunk():
    z = np.random.default_rng(0).normal(size=(20_000, 3)) * [0.3, 1.0, 1.4]
    variances = np.linalg.eigvalsh(z.T @ z / len(z))
    np.testing.assert_allclose(shrink_variances(z, variances), variances, rtol=0.01)
