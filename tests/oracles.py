r"""Closed forms in NumPy's float64, and what "equal within the noise" means.

**Tolerance.** Let :math:`f_1, \dots, f_n` be independent with mean :math:`\mu` and
finite variance. By the central limit theorem

.. math:: z = \frac{\bar f - \mu}{\hat\sigma / \sqrt n}

is standard normal up to :math:`O(n^{-1/2})`, so a correct program has :math:`|z| > 5`
once in 1.7 million statistics: with a few hundred statistics and fixed keys a failure
is a bug, not bad luck. The same holds for the average of a *paired change*
:math:`f(x') - f(x)` with :math:`\mu = 0`, which is what the tests of invariance use:
:math:`x` are exact draws, :math:`x'` the same chains some steps later, and what the
draws have in common cancels. A test that can fail has a negative control beside it: the
same statistic on a broken program, which must be far beyond the threshold.
"""

import jax.numpy as jnp
import numpy as np
from scipy import special, stats

from numpyro_rtk.core.segment import Evaluation
from numpyro_rtk.gaussians import GaussianMixture

Z_LIMIT = 5.0


def z_score(values, expected=0.0):
    """The z of independent ``values`` ``(n, ...)`` against their expectation."""
    values = np.asarray(values, np.float64)
    error = values.std(axis=0, ddof=1) / np.sqrt(values.shape[0])
    difference = values.mean(axis=0) - expected
    # a statistic that never varies has no error: any difference is then too large
    return difference / np.maximum(error, 1e-12)


def assert_mean(values, expected=0.0, limit=Z_LIMIT):
    """Independent ``values`` ``(n, ...)`` have this expectation, each within ``limit``.

    With n values of sample standard deviation s the standard error is s / sqrt(n).
    """
    z = z_score(values, expected)
    assert np.all(np.abs(z) < limit), (
        f"z = {np.round(z, 1)} beyond {limit} (n = {len(values)}, "
        f"mean {np.mean(values, axis=0)}, expected {expected})"
    )


def summaries(x):
    """Statistics ``(n, 7)`` of 2-d points that see location, shape and mode weights."""
    u, v = np.asarray(x, np.float64).T
    columns = [u, v, u**2, u * v, v**2, u > 0.5, np.tanh(2.0 * (u - v))]
    return np.stack(columns, axis=1)


class Mixture:
    """A Gaussian mixture in NumPy: density, moments, draws, posterior."""

    def __init__(self, weights, means, covariances):
        self.weights = np.asarray(weights, float)
        self.means = np.asarray(means, float)
        self.covariances = np.asarray(covariances, float)

    def noised(self, t, loc=0.0, scale=1.0):
        """The law of ``x_t`` when the noise runs on ``(x - loc) / scale``."""
        a, dim = np.exp(-t), self.means.shape[1]
        means = loc + a * (self.means - loc)
        noise = (1.0 - a**2) * np.diag(np.broadcast_to(scale, (dim,)) ** 2)
        return Mixture(self.weights, means, a**2 * self.covariances + noise)

    def log_density(self, x):
        parts = [
            np.log(w) + stats.multivariate_normal(m, c).logpdf(x)
            for w, m, c in zip(self.weights, self.means, self.covariances, strict=True)
        ]
        return special.logsumexp(np.stack(parts), axis=0)

    def moments(self):
        """Mean ``(dim,)`` and covariance ``(dim, dim)``."""
        mean = self.weights @ self.means
        shifts = self.means - mean
        within = np.einsum("j,jab->ab", self.weights, self.covariances)
        return mean, within + np.einsum("j,ja,jb->ab", self.weights, shifts, shifts)

    def draws(self, seed, n):
        rng = np.random.default_rng(seed)
        chosen = rng.choice(len(self.weights), size=n, p=self.weights)
        roots = np.linalg.cholesky(self.covariances)
        noise = rng.normal(size=(n, self.means.shape[1]))
        return self.means[chosen] + np.einsum("nab,nb->na", roots[chosen], noise)

    def posterior(self, direction, y, variance):
        """Posterior and evidence after ``y = direction . x + N(0, variance)``."""
        h = np.asarray(direction, float)
        gains = np.einsum("jab,b->ja", self.covariances, h)
        spread = gains @ h + variance
        surprise = y - self.means @ h
        evidences = self.weights * stats.norm.pdf(surprise, 0.0, np.sqrt(spread))
        means = self.means + gains * (surprise / spread)[:, None]
        covariances = (
            self.covariances
            - np.einsum("ja,jb->jab", gains, gains) / spread[:, None, None]
        )
        evidence = evidences.sum()
        return Mixture(evidences / evidence, means, covariances), evidence

    def standardised(self):
        """The law of ``(x - mean) / sd``."""
        mean, covariance = self.moments()
        scale = np.sqrt(np.diag(covariance))
        return Mixture(
            self.weights,
            (self.means - mean) / scale,
            self.covariances / np.outer(scale, scale),
        )

    def jax(self, **options):
        return GaussianMixture(self.weights, self.means, self.covariances, **options)

    def target(self):
        """As a function of one position, for the inner samplers."""
        mixture = self.jax()
        return lambda x: Evaluation(*mixture.log_density_and_score(x, 0.0))


# Three unequal, unequally turned components: no reflection or swap of coordinates maps
# it to itself, so a wrong sign or a transposed matrix shows.
SKEWED = Mixture(
    [0.55, 0.3, 0.15],
    [[-0.9, 0.3], [1.2, 0.9], [0.8, -1.6]],
    [
        [[0.3, 0.12], [0.12, 0.2]],
        [[0.25, -0.15], [-0.15, 0.4]],
        [[0.15, 0.0], [0.0, 0.35]],
    ],
)


def gaussian_target(mean, variance):
    """A diagonal Gaussian of one position, normalised."""
    mean, variance = jnp.asarray(mean), jnp.asarray(variance)

    def target(x):
        squared = jnp.square(x - mean) / variance
        value = -0.5 * jnp.sum(squared + jnp.log(2.0 * jnp.pi * variance))
        return Evaluation(value, (mean - x) / variance)

    return target
