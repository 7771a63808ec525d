"""Gaussian mixtures by expectation maximisation."""

import warnings
from typing import Any

import numpy as np
from scipy.cluster.vq import kmeans2

from numpyro_rtk.networks.mixture_base import MixtureBase, mixture_base

__all__ = [
    "as_base",
    "best_mixture",
    "fit_mixture",
    "is_better",
    "is_plain_gaussian",
    "refit_mixture",
]

# Of a mixture that stands for clusters, and further ones for a curved shape.
_CLUSTERS, _PATCHES = (2, 3, 4, 5, 6, 7, 8, 10, 12, 16), (24, 32, 48, 64)
_MAX_FAILURES = 2  # in a row, then no more components are tried
_MAX_ITERATIONS = 60
# Added to the components' variances, on the standardised scale: rounding, and what a
# covariance from few rows may need (Ledoit & Wolf 2004 shrink it likewise).
_SMALLEST_VARIANCE, _FLOORS = 1e-5, (1e-5, 1e-2, 3e-2, 1e-1)
_FEW_ROWS = 50  # a dimension: with more a floor has nothing to mend


def fit_mixture(z: np.ndarray, num_components: int) -> MixtureBase | None:
    """A mixture of that many Gaussians with full covariances.

    Args:
        z: standardised rows, ``(n, dim)``.
        num_components: K.

    Returns:
        The base; None for one Gaussian.

    Raises:
        ImportError: without scikit-learn.
        ValueError: where there are too few rows for ``num_components``.
    """
    most = _most_components(z)
    if num_components == 1:
        return None
    if num_components > most:
        raise ValueError(
            f"`num_components` must be at most {most} for {len(z)} rows to train on "
            f"in {z.shape[1]} dimensions; got {num_components}."
        )
    return as_base(_by_em(z, num_components, _SMALLEST_VARIANCE))


def as_base(found: Any) -> MixtureBase:
    """Of scikit-learn's mixture."""
    return mixture_base(found.weights_, found.means_, found.covariances_)


def best_mixture(z: np.ndarray, held_out: np.ndarray, curved: bool = False) -> Any:
    """scikit-learn's mixture of as many Gaussians as the held-out rows ask for.

    Args:
        z: standardised rows, ``(n, dim)``.
        held_out: standardised rows that were not in ``z``, ``(m, dim)``.
        curved: whether a curve may be laid with up to 64 components. A ring needs a
            dozen before one more helps, so fewer that do not help are no sign.

    Returns:
        The mixture of 1, 2, ..., 16 (or 64) components; of more only where the held-out
        log density rises by more than its standard error. From few rows, with the floor
        of the variances that has the highest held-out log density.

    Raises:
        ImportError: without scikit-learn.
    """
    has_few = len(z) < _FEW_ROWS * z.shape[1]
    floors = _FLOORS if has_few else (_SMALLEST_VARIANCE,)
    found = [_best_number(z, held_out, floor, curved) for floor in floors]
    return max(found, key=lambda mixture: mixture.score(held_out))


def _best_number(z: np.ndarray, held_out: np.ndarray, floor: float, curved: bool):
    best, failures = _by_em(z, 1, floor), 0
    density = best.score_samples(held_out)
    for num in _CLUSTERS + _PATCHES if curved else _CLUSTERS:
        is_falling = failures >= _MAX_FAILURES and not (curved and num in _CLUSTERS)
        if num > _most_components(z) or is_falling:
            break
        found = _by_em(z, num, floor)
        gain = found.score_samples(held_out) - density
        if is_better(gain):
            best, density, failures = found, density + gain, 0
        else:
            failures += 1
    return best


def is_plain_gaussian(found: Any) -> bool:
    """Whether a mixture is one Gaussian with the rows' own covariance."""
    return found.n_components == 1 and found.reg_covar == _SMALLEST_VARIANCE


def is_better(gain: np.ndarray) -> bool:
    """Whether gains in held-out log density, ``(m,)``, exceed their standard error."""
    return bool(gain.mean() > gain.std(ddof=1) / np.sqrt(len(gain)))


def _most_components(z: np.ndarray) -> int:
    """Beyond it a component has fewer rows than a covariance needs."""
    return len(z) // (2 * z.shape[1] + 2)


def _by_em(z: np.ndarray, num: int, floor: float):
    """scikit-learn's EM from a start that does not depend on the number of threads."""
    try:
        from sklearn.cluster import kmeans_plusplus
    except ImportError:
        raise ImportError(
            "The mixture that `fit` starts from needs scikit-learn: `pip install "
            "scikit-learn`, or pass `num_components=1` to start from one Gaussian."
        ) from None
    first, _ = kmeans_plusplus(z, num, random_state=0)
    _, label = kmeans2(z, first, minit="matrix", iter=20, missing="warn")
    counts = np.bincount(label, minlength=num)
    dim = z.shape[1]
    pooled = np.cov(z, rowvar=False, bias=True).reshape(dim, dim) / num
    means, precisions = [], []
    for k, count in enumerate(counts):
        rows = z[label == k] if count else first[k : k + 1]
        # a small group's covariance leans on the pooled one
        share = count / (count + 2.0 * dim)
        own = np.cov(rows, rowvar=False, bias=True).reshape(dim, dim)
        covariance = share * own + (1.0 - share) * pooled
        covariance[np.diag_indices(dim)] += floor
        means.append(rows.mean(axis=0))
        precisions.append(np.linalg.inv(covariance))
    weights = (counts + 1.0) / (counts + 1.0).sum()
    return _iterate(z, weights, np.stack(means), np.stack(precisions), floor)


def refit_mixture(z: np.ndarray, found: Any) -> Any:
    """scikit-learn's EM on rows ``(n, dim)`` from where an earlier one ended."""
    start = found.weights_, found.means_, found.precisions_
    return _iterate(z, *start, found.reg_covar)


def _iterate(
    z: np.ndarray,
    weights: np.ndarray,
    means: np.ndarray,
    precisions: np.ndarray,
    floor: float,
):
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.mixture import GaussianMixture

    found = GaussianMixture(
        len(weights),
        reg_covar=floor,
        max_iter=_MAX_ITERATIONS,
        weights_init=weights,
        means_init=means,
        precisions_init=precisions,
        random_state=0,
    )
    with warnings.catch_warnings():
        # a mixture that is not quite at its best is a start all the same
        warnings.simplefilter("ignore", ConvergenceWarning)
        return found.fit(z)
