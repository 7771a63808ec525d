r"""Standardisation of the data, and the Gaussian that fits it.

The noise runs on :math:`z = (x - \text{loc}) / \text{scale}`. On that scale the data have
a covariance; the Gaussian with it, followed through the noise, is the simplest base of a
learned density.
"""

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from numpyro_rtk.gaussians import NoisedMixture, noised_gaussian

__all__ = [
    "Moments",
    "exchangeable_covariance",
    "fit_gaussian",
    "fit_gaussian_in_chunks",
    "fit_loc_and_scale",
    "moments_in_chunks",
    "shrink_variances",
]


_ALIKE = 2.0  # ratio of standard deviations up to which one scale serves all


class Moments(NamedTuple):
    """Of samples ``(n, *event_shape)``, in float64: all but ``num`` of ``event_shape``.

    ``num``: rows. ``mean``, ``variance``: of each coordinate. ``size``: its largest
    absolute value.
    """

    num: int
    mean: np.ndarray
    variance: np.ndarray
    size: np.ndarray


def moments_in_chunks(chunks: Iterable[np.ndarray]) -> Moments:
    """Moments of samples that come in chunks ``(m, *event_shape)``, in one pass.

    Those of two sets are merged as in Chan, Golub, LeVeque: "Algorithms for computing
    the sample variance", The American Statistician 37 (1983). One chunk gives bit for
    bit ``mean`` and ``var`` of NumPy.
    """
    whole = None
    for chunk in chunks:
        part = Moments(
            len(chunk), chunk.mean(axis=0), chunk.var(axis=0), abs(chunk).max(axis=0)
        )
        whole = part if whole is None else _merge(whole, part)
    if whole is None:
        raise ValueError("`chunks` must hold at least one chunk; got none.")
    return whole


def _merge(one: Moments, two: Moments) -> Moments:
    num = one.num + two.num
    share = two.num / num
    shift = two.mean - one.mean
    variance = (1.0 - share) * one.variance + share * two.variance
    return Moments(
        num,
        one.mean + share * shift,
        variance + share * (1.0 - share) * shift**2,
        np.maximum(one.size, two.size),
    )


def fit_loc_and_scale(
    samples: np.ndarray | Moments,
    standardise: str | None,
    exchangeable: bool = False,
    units: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of the samples, on their own scale.

    Args:
        samples: ``(n, *event_shape)``, float64; or their moments.
        standardise: ``"coordinate"``, one scale for each coordinate; ``"global"``, one
            scale for all, which keeps angles: what is independent in orthogonal
            directions remains so; None: global where all standard deviations are within
            a factor of 2, as of coordinates that share a unit, else by coordinate.
        exchangeable: the same for every entry of the first axis of an event, as if each
            sample stood there in every order.
        units: ``event_shape``, to which the scale is to be proportional, whatever
            ``standardise`` says; None: it is the samples' own.

    Returns:
        ``loc`` and ``scale``, both of shape ``event_shape``.
    """
    moments = samples if isinstance(samples, Moments) else moments_in_chunks([samples])
    loc, variance = moments.mean, moments.variance
    if exchangeable:
        centre = loc.mean(axis=0)
        variance = np.mean(variance + (loc - centre) ** 2, axis=0)
        loc, variance = (
            np.broadcast_to(value, moments.mean.shape) for value in (centre, variance)
        )
    scale = np.sqrt(variance)
    if units is not None:
        return loc, units * np.sqrt(np.mean((scale / units) ** 2))
    if standardise is None:
        alike = scale.max() <= _ALIKE * scale.min()
        standardise = "global" if alike else "coordinate"
    if standardise == "global":
        scale = np.full_like(scale, np.sqrt(np.mean(scale**2)))
    return loc, scale


def shrink_variances(z: np.ndarray, variances: np.ndarray) -> np.ndarray:
    """Eigenvalues of the sample covariance, shrunk to their mean.

    The intensity is the Ledoit-Wolf estimate: of order ``1 / n``, and large only where
    rows are few for the dimension, so that no principal axis has variance 0.

    Args:
        z: centred data ``(n, d)``.
        variances: eigenvalues of ``z.T @ z / n``, ``(d,)``.

    Returns:
        The shrunk eigenvalues, ``(d,)``.

    References:
        Ledoit, Wolf: "A well-conditioned estimator for large-dimensional covariance
        matrices", J. Multivariate Analysis 88 (2004).
    """
    return _shrink(z.shape[0], _mean_fourth_power(z), variances)


def _mean_fourth_power(z: np.ndarray) -> float:
    return np.mean(np.sum(z**2, axis=1) ** 2)


def _shrink(n: int, mean_fourth_power: float, variances: np.ndarray) -> np.ndarray:
    centre = variances.mean()
    spread = np.sum((variances - centre) ** 2)
    noise = (mean_fourth_power - np.sum(variances**2)) / n
    intensity = 1.0 if spread == 0.0 else float(np.clip(noise / spread, 0.0, 1.0))
    return (1.0 - intensity) * variances + intensity * centre


def exchangeable_covariance(covariance: np.ndarray, num: int) -> np.ndarray:
    """The mean of a covariance over all orders of ``num`` elements.

    Args:
        covariance: ``(num * d, num * d)``, elements one after the other.
        num: of elements.

    Returns:
        One block for every element and one for every two, ``(num * d, num * d)``.
    """
    dim = len(covariance) // num
    blocks = covariance.reshape(num, dim, num, dim)
    own = np.einsum("idie->de", blocks) / num
    other = (np.einsum("idje->de", blocks) - num * own) / max(num * (num - 1), 1)
    return np.kron(np.eye(num), own - other) + np.kron(np.ones((num, num)), other)


def fit_gaussian(z: np.ndarray, num_exchangeable: int = 1) -> NoisedMixture:
    """The Gaussian of standardised data ``(n, d)``, of mean 0, in float32."""
    return fit_gaussian_in_chunks([z], len(z), num_exchangeable)


def fit_gaussian_in_chunks(
    chunks: Iterable[np.ndarray], num: int, num_exchangeable: int = 1
) -> NoisedMixture:
    """The Gaussian of standardised data in chunks ``(m, d)``, of mean 0, in float32.

    One chunk gives bit for bit :func:`fit_gaussian`.

    Args:
        chunks: centred data.
        num: rows in all.
        num_exchangeable: number of elements, one after the other, whose order is not to
            matter; 1: one vector.
    """
    covariance, fourth = np.zeros(()), 0.0
    for z in chunks:
        share = len(z) / num
        covariance = covariance + share * (z.T @ z / len(z))
        fourth = fourth + share * _mean_fourth_power(z)
    if num_exchangeable > 1:
        covariance = exchangeable_covariance(covariance, num_exchangeable)
    variances, axes = np.linalg.eigh(covariance)
    variances = _shrink(num, fourth, np.maximum(variances, 0.0))
    return noised_gaussian(axes, variances)
