"""Laws to learn densities from: draws, labels and the exact log density, in NumPy."""

from collections.abc import Callable

import numpy as np
from scipy.special import logsumexp
from scipy.stats import multivariate_normal


class Modes:
    """What follows from the log density of each mode, weight included."""

    def log_parts(self, x: np.ndarray) -> np.ndarray:
        """``(n, dim)`` to ``(n, modes)``."""
        raise NotImplementedError

    def log_density(self, x: np.ndarray) -> np.ndarray:
        return logsumexp(self.log_parts(x), axis=-1)

    def assign(self, x: np.ndarray) -> np.ndarray:
        """Most probable mode of each row."""
        return np.argmax(self.log_parts(x), axis=-1)


class Mixture(Modes):
    """An asymmetric mixture of correlated Gaussians with unequal weights."""

    def __init__(self, rng: np.random.Generator, dim: int, floor: float, num: int = 6):
        self.weights = rng.dirichlet(np.full(num, 3.0))
        self.means = rng.normal(size=(num, dim))
        roots = rng.normal(size=(num, dim, dim)) / np.sqrt(dim)
        covariances = roots @ roots.transpose(0, 2, 1) + floor * np.eye(dim)
        centred = self.means - self.weights @ self.means
        between = np.mean(self.weights @ centred**2)
        ratio = 0.29**2  # component variance over total variance
        within = np.trace(covariances, axis1=1, axis2=2) / dim
        target = between * ratio / (1.0 - ratio)
        self.covariances = covariances * (target / within)[:, None, None]

    def draw(self, rng: np.random.Generator, num: int) -> tuple[np.ndarray, np.ndarray]:
        which = rng.choice(len(self.weights), size=num, p=self.weights)
        noise = rng.normal(size=(num, self.means.shape[1]))
        roots = np.linalg.cholesky(self.covariances)
        return self.means[which] + np.einsum("nij,nj->ni", roots[which], noise), which

    def log_parts(self, x: np.ndarray) -> np.ndarray:
        parts = [
            np.log(w) + multivariate_normal(m, c).logpdf(x)
            for w, m, c in zip(self.weights, self.means, self.covariances, strict=True)
        ]
        return np.stack(parts, axis=-1)

    def score(self, x: np.ndarray) -> np.ndarray:
        parts = self.log_parts(x)
        shares = np.exp(parts - logsumexp(parts, axis=-1, keepdims=True))
        pulls = np.stack(
            [
                np.linalg.solve(c, (m - x).T).T
                for m, c in zip(self.means, self.covariances, strict=True)
            ],
            axis=1,
        )
        return np.einsum("nj,njd->nd", shares, pulls)


class Curves(Modes):
    """Gaussian noise about curves in the plane, one curve a mode, with unequal weights.

    A point is ``curve_j(u) + sd_j(u) e`` with ``u`` uniform on (0, 1): its density is an
    integral over ``u``, taken by the midpoint rule, whose nodes lie closer than the noise
    is wide, so that it is exact to rounding.
    """

    def __init__(
        self,
        weights: list[float],
        curves: list[Callable[[np.ndarray], np.ndarray]],
        sd: Callable[[np.ndarray], np.ndarray],
        num_nodes: int = 400,
    ):
        self.weights, self.curves, self.sd = np.array(weights), curves, sd
        self.nodes = (np.arange(num_nodes) + 0.5) / num_nodes

    def draw(self, rng: np.random.Generator, num: int) -> tuple[np.ndarray, np.ndarray]:
        which = rng.choice(len(self.weights), size=num, p=self.weights)
        u = rng.uniform(size=num)
        by_curve = np.stack([curve(u) for curve in self.curves])
        noise = self.sd(u)[:, None] * rng.normal(size=(num, 2))
        return by_curve[which, np.arange(num)] + noise, which

    def log_parts(self, x: np.ndarray) -> np.ndarray:
        sd = self.sd(self.nodes)
        parts = []
        for weight, curve in zip(self.weights, self.curves, strict=True):
            squares = np.sum((x[:, None] - curve(self.nodes)) ** 2, axis=-1)
            terms = -0.5 * squares / sd**2 - np.log(2.0 * np.pi * sd**2)
            average = logsumexp(terms, axis=1) - np.log(len(self.nodes))
            parts.append(np.log(weight) + average)
        return np.stack(parts, axis=-1)


def two_moons() -> Curves:
    """scikit-learn's two moons, noise .1, two points of three on the upper one."""
    upper = lambda u: np.stack([np.cos(np.pi * u), np.sin(np.pi * u)], -1)
    lower = lambda u: np.stack([1 - np.cos(np.pi * u), 0.5 - np.sin(np.pi * u)], -1)
    return Curves([0.67, 0.33], [upper, lower], lambda u: np.full_like(u, 0.1))


def rings() -> Curves:
    """Three concentric rings of radius 1, 2, 3, noise .08."""
    circle = lambda radius: (
        lambda u: (
            radius * np.stack([np.cos(2 * np.pi * u), np.sin(2 * np.pi * u)], axis=-1)
        )
    )
    return Curves(
        [0.5, 0.2, 0.3], [circle(1), circle(2), circle(3)], lambda u: 0.08 + 0 * u
    )


def pinwheel() -> Curves:
    """Five bent arms that grow wider outwards."""

    def arm(start):
        def curve(u):
            angle, radius = start + 1.2 * u, 0.4 + 2.0 * u
            return radius[..., None] * np.stack([np.cos(angle), np.sin(angle)], axis=-1)

        return curve

    starts = 2.0 * np.pi * np.arange(5) / 5
    return Curves(
        [0.35, 0.25, 0.2, 0.12, 0.08],
        [arm(a) for a in starts],
        lambda u: 0.06 + 0.1 * u,
    )
