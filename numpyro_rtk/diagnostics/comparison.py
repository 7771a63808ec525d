"""Two samples compared: a density's own draws with rows, all ``(n, dim)`` arrays.

Each comparison comes with what two samples of one law would give, where that is not 0.
"""

import warnings

import numpy as np
from scipy.cluster.vq import kmeans2
from scipy.spatial import KDTree
from scipy.spatial.distance import cdist

__all__ = [
    "NUM_GROUPS",
    "energy_distance",
    "gaussian_log_density",
    "group_tv",
    "groups_of",
    "mean_and_error",
    "mixture_log_density",
    "share_memorised",
]

NUM_GROUPS = 8  # that rows are sorted into
_MOST_COMPONENTS = 8  # of a mixture by EM
_SPLITS = 20  # of pooled samples at random
_MOST_ROWS = 2000  # pairs of rows cost memory


def mean_and_error(values: np.ndarray) -> tuple[float, float]:
    """Of independent values."""
    return float(values.mean()), float(values.std(ddof=1) / np.sqrt(len(values)))


def gaussian_log_density(fitted: np.ndarray, asked: np.ndarray) -> np.ndarray:
    """Of a Gaussian with the moments of some rows, at others, ``(n,)``."""
    # imported here, for it would be a third of the time that the package takes to import
    from scipy.stats import multivariate_normal

    covariance = np.atleast_2d(np.cov(fitted.T)) + 1e-9 * np.diag(fitted.var(axis=0))
    mean = fitted.mean(axis=0)
    logpdf = multivariate_normal.logpdf(asked, mean, covariance)  # pyright: ignore[reportArgumentType]
    return np.atleast_1d(logpdf)


def mixture_log_density(fitted: np.ndarray, asked: np.ndarray) -> np.ndarray:
    """Of a mixture by EM; components and kind of covariance by the Bayesian criterion."""
    from sklearn.mixture import GaussianMixture as ByEM  # late: slow to import

    # on one scale, since the floor of the variances is one number for all coordinates
    mean, spread = fitted.mean(axis=0), fitted.std(axis=0)
    fitted, asked = (fitted - mean) / spread, (asked - mean) / spread
    fits = [
        ByEM(n, covariance_type=kind, reg_covar=1e-4, random_state=0).fit(fitted)
        for kind in ("full", "diag")
        for n in range(1, _MOST_COMPONENTS + 1)
        if kind == "diag" or n * fitted.shape[1] < len(fitted) / 2
    ]
    best = min(fits, key=lambda fit: fit.bic(fitted))
    return best.score_samples(asked) - np.sum(np.log(spread))


def groups_of(
    draws: np.ndarray, rows: np.ndarray, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """The group of each of the draws and of the rows, by k-means of the rows."""
    first = rows[rng.choice(len(rows), NUM_GROUPS, replace=False)]
    with warnings.catch_warnings():  # an empty group, where rows repeat, does no harm
        warnings.simplefilter("ignore", UserWarning)
        means, _ = kmeans2(rows, first, minit="matrix")
    tree = KDTree(means)
    of_draws, of_rows = (np.asarray(tree.query(x)[1]) for x in (draws, rows))
    return of_draws, of_rows


def group_tv(
    of_draws: np.ndarray, of_rows: np.ndarray, rng: np.random.Generator
) -> tuple[float, float]:
    """Total variation between shares of groups, and its mean over random splits.

    The splits are of the pooled samples: what two samples of one law would give.
    """
    share = lambda group: np.bincount(group, minlength=NUM_GROUPS) / len(group)
    tv = lambda one, two: float(0.5 * np.abs(share(one) - share(two)).sum())
    pooled = np.concatenate([of_draws, of_rows])
    splits = []
    for _ in range(_SPLITS):
        rng.shuffle(pooled)
        splits.append(tv(pooled[: len(of_draws)], pooled[len(of_draws) :]))
    return tv(of_draws, of_rows), float(np.mean(splits))


def energy_distance(one: np.ndarray, two: np.ndarray) -> float:
    """Szekely & Rizzo (2013), unbiased; about 0 for two samples of one law."""
    one, two = one[:_MOST_ROWS], two[:_MOST_ROWS]
    within = lambda x: cdist(x, x).sum() / (len(x) * (len(x) - 1))
    return float(2.0 * cdist(one, two).mean() - within(one) - within(two))


def share_memorised(draws: np.ndarray, rows: np.ndarray, training: np.ndarray) -> float:
    """Share of draws closer to a training row than a held-out row is at the median."""
    scale = training.std(axis=0)
    tree = KDTree(training / scale)
    distance = lambda x: np.asarray(tree.query(x / scale)[0])
    return float(np.mean(distance(draws) < np.median(distance(rows))))
