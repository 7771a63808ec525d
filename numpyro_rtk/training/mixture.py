"""Gaussian mixtures by expectation maximisation, for few rows and heavy tails too.

Two things are beyond a plain fit. From few rows each component's covariance leans on that
within components, pooled over all: the maximum a posteriori under an inverse Wishart law
(Fraley & Raftery, "Bayesian regularization for normal mixture estimation and model-based
clustering", Journal of Classification 24 (2007)) centred where the mixture itself has
come to. Where rows lie far out, a share of each component is spread more widely about
the same mean (Punzo & McNicholas, "Parsimonious mixtures of multivariate contaminated
normal distributions", Biometrical Journal 58 (2016)). Held-out rows choose both, and the
number of components.
"""

import math
from typing import NamedTuple

import numpy as np
from scipy.cluster.vq import kmeans2
from scipy.special import logsumexp

from numpyro_rtk.gaussians import NoisedMixture, noised_mixture

__all__ = [
    "CovariancePrior",
    "FoundMixture",
    "best_mixture",
    "by_em",
    "fit_mixture",
    "is_better",
    "is_plain_gaussian",
]

# Of a mixture that stands for clusters, and further ones for a curved shape.
_CLUSTERS, _PATCHES = (2, 3, 4, 5, 6, 7, 8, 10, 12, 16), (24, 32, 48, 64)
_MAX_FAILURES = 2  # in a row, then no more components are tried
_MAX_ITERATIONS, _TOLERANCE = 60, 1e-3  # of the mean log density, nats
_FEW_ROWS = 50  # a dimension: with more, shrinkage has nothing to mend
_CHOICE_COST = 15_000_000  # rows times dimensions squared
_COUNTS, _VARIANCES = (0.3, 1.0, 3.0), (1e-5, 1e-3, 1e-2, 1e-1)  # counts in dimensions
_TAILS, _FACTORS = (0.03, 0.1, 0.3), (2.0, 4.0, 9.0, 25.0)


class CovariancePrior(NamedTuple):
    """What is thought beforehand of the covariances of a mixture's components.

    Attributes:
        count: rows that the pooled covariance stands in for in each component's own.
        variance: added to all variances, on the standardised scale.
        tail: share of a component that is spread more widely.
        factor: of the covariance there.
    """

    count: float = 1.0  # no component is a point
    variance: float = 1e-5  # rounding
    tail: float = 0.0
    factor: float = 1.0


_PLAIN = CovariancePrior()


class FoundMixture(NamedTuple):
    """A mixture of K Gaussians, or of K pairs about one mean, of standardised rows.

    What expectation maximisation works on, in NumPy's float64 and not as a
    :class:`NoisedMixture`: covariances lose small variances in float32, held-out gains
    are of a thousandth of a nat, and each K would be compiled anew.

    ``weights`` (K,), ``means`` (K, dim), ``covariances`` (K, dim, dim), ``prior``.
    """

    weights: np.ndarray
    means: np.ndarray
    covariances: np.ndarray
    prior: CovariancePrior

    def log_density(self, z: np.ndarray) -> np.ndarray:
        """Of rows ``(n, dim)``: ``(n,)``."""
        return np.asarray(logsumexp(_by_component(self, z)[0], axis=1))

    def refit(self, z: np.ndarray) -> "FoundMixture":
        """By expectation maximisation on rows ``(n, dim)``, from where this one is."""
        found, last = self, -np.inf
        for _ in range(_MAX_ITERATIONS):
            joint, core = _by_component(found, z)
            density = np.asarray(logsumexp(joint, axis=1, keepdims=True))
            # a mixture that is not quite at its best is a start all the same
            if density.mean() - last < _TOLERANCE:
                break
            last = density.mean()
            shares = np.exp(joint - density)
            found = _maximise(z, shares, core * shares, found.prior)
        return found

    def as_base(self) -> NoisedMixture:
        """Followed through the noise; a pair is two of its components."""
        _, _, tail, factor = self.prior
        if not tail:
            return noised_mixture(self.weights, self.means, self.covariances)
        return noised_mixture(
            np.concatenate([(1.0 - tail) * self.weights, tail * self.weights]),
            np.concatenate([self.means, self.means]),
            np.concatenate([self.covariances, factor * self.covariances]),
        )


def fit_mixture(
    z: np.ndarray, held_out: np.ndarray, num_components: int
) -> FoundMixture:
    """A mixture of that many Gaussians with full covariances.

    Args:
        z: standardised rows, ``(n, dim)``.
        held_out: standardised rows that were not in ``z``, ``(m, dim)``.
        num_components: K.

    Raises:
        ValueError: where there are too few rows for ``num_components``.
    """
    most = _most_components(z)
    if num_components > most:
        raise ValueError(
            f"`num_components` must be at most {most} for {len(z)} rows to train on "
            f"in {z.shape[1]} dimensions; got {num_components}."
        )
    return _best_prior(z, held_out, by_em(z, num_components))


def best_mixture(
    z: np.ndarray, held_out: np.ndarray, curved: bool = False
) -> FoundMixture:
    """The mixture of as many components, and of the prior, that held-out rows ask for.

    In many dimensions both are chosen with a part of the rows, for the time it takes.

    Args:
        z: standardised rows, ``(n, dim)``.
        held_out: standardised rows that were not in ``z``, ``(m, dim)``.
        curved: whether a curve may be laid with up to 64 components. A ring needs a
            dozen before one more helps, so fewer that do not help are no sign.

    Returns:
        The mixture of 1, 2, ..., 16 (or 64) components; of more only where the held-out
        log density rises by more than its standard error, with tails by more than two
        (from few rows, one).
    """
    most = max(_CHOICE_COST // z.shape[1] ** 2, _FEW_ROWS * z.shape[1])
    if most < len(z):
        part = np.random.default_rng(0).permutation(len(z))[:most]
        return best_mixture(z[part], held_out, curved).refit(z)
    start = _PLAIN
    if _has_few(z):
        start = CovariancePrior(count=_COUNTS[1] * z.shape[1], variance=_VARIANCES[1])
    first = _best_number(z, held_out, curved, start)
    found = _best_prior(z, held_out, first)
    prior = found.prior
    if not prior.tail and len(first.weights) > 1:
        # tails as such, before several components stood in for them
        alone = _best_prior(z, held_out, by_em(z, 1, start)).prior
        prior = prior._replace(tail=alone.tail, factor=alone.factor)
    if prior == start:
        return first
    return _best_of([found, _best_number(z, held_out, curved, prior)], held_out)


def is_plain_gaussian(found: FoundMixture) -> bool:
    """Whether a mixture is one Gaussian with the rows' own covariance."""
    return len(found.weights) == 1 and found.prior[1:] == _PLAIN[1:]


def is_better(gain: np.ndarray, num_se: float = 1.0) -> bool:
    """Whether gains in held-out log density, ``(m,)``, exceed their standard error."""
    return bool(gain.mean() > num_se * gain.std(ddof=1) / np.sqrt(len(gain)))


# -- the search ----------------------------------------------------------------------


def _best_number(
    z: np.ndarray, held_out: np.ndarray, curved: bool, prior: CovariancePrior
) -> FoundMixture:
    best, failures = by_em(z, 1, prior), 0
    density = best.log_density(held_out)
    for num in _CLUSTERS + _PATCHES if curved else _CLUSTERS:
        is_falling = failures >= _MAX_FAILURES and not (curved and num in _CLUSTERS)
        if num > _most_components(z) or is_falling:
            break
        found = by_em(z, num, prior)
        gain = found.log_density(held_out) - density
        if is_better(gain):
            best, density, failures = found, density + gain, 0
        else:
            failures += 1
    return best


def _best_prior(
    z: np.ndarray, held_out: np.ndarray, found: FoundMixture
) -> FoundMixture:
    """With as many components: shrunk where rows are few, with tails where they help."""
    num = len(found.weights)
    if _has_few(z):
        counts = _COUNTS if num > 1 else (_COUNTS[1],)
        priors = [
            CovariancePrior(c * z.shape[1], v) for c in counts for v in _VARIANCES
        ]
        found = _best_of([by_em(z, num, prior) for prior in priors], held_out)
    heavier = [
        found._replace(prior=found.prior._replace(tail=tail, factor=factor))
        for tail in _TAILS
        for factor in _FACTORS
    ]
    heavy = _best_of(heavier, held_out).refit(z)
    # of the best of a dozen; a single row far out could gain more than all the others
    gain = np.clip(heavy.log_density(held_out) - found.log_density(held_out), -1.0, 1.0)
    return heavy if is_better(gain, num_se=1.0 if _has_few(z) else 2.0) else found


def _best_of(found: list[FoundMixture], held_out: np.ndarray) -> FoundMixture:
    return max(found, key=lambda mixture: mixture.log_density(held_out).mean())


def _has_few(z: np.ndarray) -> bool:
    return len(z) < _FEW_ROWS * z.shape[1]


def _most_components(z: np.ndarray) -> int:
    """Beyond it a component has fewer rows than a covariance needs."""
    return len(z) // (2 * z.shape[1] + 2)


# -- expectation maximisation ----------------------------------------------------------


def by_em(z: np.ndarray, num: int, prior: CovariancePrior = _PLAIN) -> FoundMixture:
    """From a k-means start, the same on any machine.

    Args:
        z: standardised rows, ``(n, dim)``.
        num: K.
        prior: of the components.
    """
    from sklearn.cluster import kmeans_plusplus  # late: slow to import

    first, _ = kmeans_plusplus(z, num, random_state=0)
    _, label = kmeans2(z, first, minit="matrix", iter=20, missing="warn")
    # a small group's first covariance leans on the pooled one
    lean = prior._replace(count=max(prior.count, 2.0 * z.shape[1]))
    shares = np.eye(num)[label]
    return _maximise(z, shares, shares, lean)._replace(prior=prior).refit(z)


def _by_component(found: FoundMixture, z: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Log density of row and component, ``(n, K)``, and the row's part in its shape.

    The part is 1 without tails; a row of the tail counts one ``factor``-th.
    """
    dim = z.shape[1]
    roots = np.linalg.inv(np.linalg.cholesky(found.covariances))
    parts = zip(found.means, roots, strict=True)
    squares = np.stack([np.sum(((z - m) @ r.T) ** 2, axis=1) for m, r in parts], axis=1)
    half_log_det = np.sum(np.log(np.diagonal(roots, axis1=1, axis2=2)), axis=1)
    constant = np.log(found.weights) + half_log_det - 0.5 * dim * math.log(2 * math.pi)
    core = constant - 0.5 * squares
    _, _, tail, factor = found.prior
    if not tail:
        return core, np.ones_like(core)
    core = core + math.log1p(-tail)
    more = 0.5 * (1.0 - 1.0 / factor) * squares - 0.5 * dim * math.log(factor)
    both = np.logaddexp(core, core + more + math.log(tail / (1.0 - tail)))
    is_core = np.exp(core - both)
    return both, is_core + (1.0 - is_core) / factor


def _maximise(
    z: np.ndarray, shares: np.ndarray, parts: np.ndarray, prior: CovariancePrior
) -> FoundMixture:
    """From each row's share in each component and its part in the shape, ``(n, K)``."""
    counts = shares.sum(axis=0) + 1e-6  # of a component that lost all its rows
    means = parts.T @ z / (parts.sum(axis=0) + 1e-6)[:, None]
    pairs = zip(means, parts.T, strict=True)
    spreads = np.stack(
        [((z - mean) * part[:, None]).T @ (z - mean) for mean, part in pairs]
    )
    pooled = spreads.sum(axis=0) / len(z)
    rows = (counts + prior.count)[:, None, None]
    covariances = (spreads + prior.count * pooled) / rows
    covariances += prior.variance * np.eye(z.shape[1])
    return FoundMixture(counts / counts.sum(), means, covariances, prior)
