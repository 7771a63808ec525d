"""Posteriors of mixtures under linear measurements, in closed form."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np

from benchmarks.shared.targets import Target, mixture_target, most_probable
from numpyro_rtk.noise import noise_variance, signal


class LinearPosterior(NamedTuple):
    """Posterior of a mixture prior under ``y = H x + noise``, in closed form."""

    prior: object
    design: np.ndarray
    noise_sd: float
    data: np.ndarray
    weights: np.ndarray
    means: np.ndarray
    covariances: np.ndarray
    log_evidence: float

    @property
    def mean(self) -> np.ndarray:
        return self.weights @ self.means

    @property
    def sd(self) -> np.ndarray:
        second = np.einsum(
            "j,jaa->a", self.weights, self.covariances
        ) + self.weights @ (self.means**2)
        return np.sqrt(second - self.mean**2)

    def assign(self, x: np.ndarray) -> np.ndarray:
        """Most probable posterior component of each row."""
        return most_probable(x, self.weights, self.means, self.covariances)

    def shares(self, x: np.ndarray, weights: np.ndarray | None = None) -> np.ndarray:
        counts = np.bincount(self.assign(x), weights, minlength=len(self.weights))
        return counts / counts.sum()

    def true_shares(self, n: int = 200_000, seed: int = 1) -> np.ndarray:
        """Shares of exact posterior draws under the same assignment."""
        rng = np.random.default_rng(seed)
        factors = np.linalg.cholesky(self.covariances)
        chosen = rng.choice(len(self.weights), size=n, p=self.weights)
        noise = rng.normal(size=(n, self.means.shape[1]))
        return self.shares(
            self.means[chosen] + np.einsum("nab,nb->na", factors[chosen], noise)
        )

    def error(self, x: np.ndarray, truth: np.ndarray | None = None) -> float:
        """Total variation of the mode weights; ``truth`` are the true shares."""
        truth = self.true_shares() if truth is None else truth
        return float(0.5 * np.abs(self.shares(x) - truth).sum())


def linear_posterior(
    target: Target, num_observed: int, noise_sd: float, seed: int = 0, tries: int = 300
) -> LinearPosterior:
    """A posterior that keeps several modes alive: the best of ``tries`` simulated data."""
    rng = np.random.default_rng(seed)
    w, m, c = _parts(target.density)
    design = rng.normal(size=(num_observed, m.shape[1]))
    design /= np.linalg.norm(design, axis=1, keepdims=True)
    candidates = []
    for _ in range(tries):
        y = _simulate(rng, (w, m, c), design, noise_sd)
        posterior = condition(target.density, design, noise_sd, y)
        candidates.append((_entropy(posterior.weights), posterior))
    return max(candidates, key=lambda item: item[0])[1]


def partly_measured(
    dim: int,
    num_observed: int,
    relative_sd: float | None = None,
    noise_sd: float = 0.1,
    alive: int = 3,
    dead: int = 3,
    seed: int = 0,
) -> LinearPosterior:
    """Modes that differ only in what is not measured, and others that the data exclude.

    ``alive`` modes have one law in the measured directions, so their weights in the
    posterior are those of the prior; elsewhere means, widths and correlations with what
    is measured differ. ``dead`` modes lie apart in the measured directions too.

    Args:
        dim: dimensions.
        num_observed: measured directions.
        relative_sd: noise in units of the modes' sd; overrides ``noise_sd``.
        noise_sd: noise of a measurement.
        alive: modes that the data cannot tell apart.
        dead: others.
        seed: of all random numbers.
    """
    rng = np.random.default_rng(seed)
    basis, _ = np.linalg.qr(rng.normal(size=(dim, dim)))
    rest = dim - num_observed
    spread = 0.29
    means, covariances = [], []
    shared_mean = rng.normal(size=num_observed)
    shared_sd = spread * rng.uniform(0.5, 1.5, size=num_observed)
    for j in range(alive + dead):
        u_mean = shared_mean if j < alive else rng.normal(size=num_observed)
        gain = 0.5 * rng.normal(size=(rest, num_observed)) / np.sqrt(num_observed)
        own = np.diag((spread * rng.uniform(0.5, 1.5, size=rest)) ** 2)
        u_cov = np.diag(shared_sd**2)
        block = np.block(
            [[u_cov, u_cov @ gain.T], [gain @ u_cov, gain @ u_cov @ gain.T + own]]
        )
        means.append(basis @ np.concatenate([u_mean, rng.normal(size=rest)]))
        covariances.append(basis @ block @ basis.T)
    weights = rng.dirichlet(3.0 * np.ones(alive + dead))
    target = mixture_target("partly measured", weights, np.array(means), covariances)
    if relative_sd is not None:
        noise_sd = relative_sd * spread
    design = basis[:, :num_observed].T
    live = [part[:alive] for part in _parts(target.density)]
    y = _simulate(rng, (live[0] / live[0].sum(), *live[1:]), design, noise_sd)
    return condition(target.density, design, noise_sd, y)


def informative_posterior(dim: int) -> LinearPosterior:
    """Seven live modes; a quarter of the directions measured to a fifth of their sd."""
    return partly_measured(dim, dim // 4, relative_sd=0.2, alive=7, dead=1)


def _parts(density):
    w, m, c = (
        np.asarray(a, float)
        for a in (density.weights, density.means, density.covariances)
    )
    return w / w.sum(), m, c


def _simulate(rng, parts, design, noise_sd):
    w, m, c = parts
    j = rng.choice(len(w), p=w)
    x = rng.multivariate_normal(m[j], c[j])
    return design @ x + noise_sd * rng.normal(size=len(design))


def _entropy(weights):
    return -np.sum(weights * np.log(weights + 1e-300))


def condition(prior, design, noise_sd, y) -> LinearPosterior:
    """The posterior of a mixture prior given ``y``."""
    w, m, c = _parts(prior)
    scatter = design @ c @ design.T + noise_sd**2 * np.eye(len(design))
    residual = y - m @ design.T
    distance = np.einsum("ja,jab,jb->j", residual, np.linalg.inv(scatter), residual)
    log_det = np.linalg.slogdet(2.0 * np.pi * scatter)[1]
    joint = np.log(w) - 0.5 * (distance + log_det)
    evidence = np.logaddexp.reduce(joint)
    gain = c @ design.T @ np.linalg.inv(scatter)
    return LinearPosterior(
        prior,
        design,
        noise_sd,
        y,
        np.exp(joint - evidence),
        m + np.einsum("jab,jb->ja", gain, residual),
        c - gain @ design @ c,
        float(evidence),
    )


class BlockMixture:
    """Independent 2-d mixtures, turned by one rotation: exact noised densities.

    With B blocks of 5 unequal modes it has 5**B modes.
    """

    def __init__(self, num_blocks: int, seed: int = 0):
        rng = np.random.default_rng(seed)
        self.num_blocks, self.dim = num_blocks, 2 * num_blocks
        self.event_shape = (self.dim,)
        self.block_means = rng.normal(size=(num_blocks, 5, 2))
        self.block_weights = rng.dirichlet(3.0 * np.ones(5), size=num_blocks)
        self.block_sds = rng.uniform(0.12, 0.3, size=(num_blocks, 5))
        self.rotation, _ = np.linalg.qr(rng.normal(size=(self.dim, self.dim)))

    def log_density(self, x, t):
        return self.log_density_and_score(x, t)[0]

    def score(self, x, t):
        return self.log_density_and_score(x, t)[1]

    def log_density_and_score(self, x, t):
        # noise is rotation-invariant, and scale 1 is close enough to standardised
        y = (jnp.asarray(self.rotation.T) @ x).reshape(self.num_blocks, 2)
        a, v = signal(t), noise_variance(t)
        delta = y[:, None] - a * jnp.asarray(self.block_means)
        variance = a**2 * jnp.asarray(self.block_sds) ** 2 + v
        log_parts = (
            jnp.log(jnp.asarray(self.block_weights))
            - 0.5 * jnp.sum(delta**2, axis=-1) / variance
            - jnp.log(2.0 * jnp.pi * variance)
        )
        shares = jax.nn.softmax(log_parts, axis=-1) / variance
        score = -jnp.sum(shares[..., None] * delta, axis=1)
        value = jnp.sum(jax.nn.logsumexp(log_parts, axis=-1))
        return value, jnp.asarray(self.rotation) @ score.reshape(self.dim)

    def sample(self, key, shape):
        key_mode, key_noise = jr.split(key)
        size = (*shape, self.num_blocks)
        log_weights = jnp.log(jnp.asarray(self.block_weights))
        chosen = jr.categorical(key_mode, log_weights, shape=size)
        block = jnp.arange(self.num_blocks)
        mean = jnp.asarray(self.block_means)[block, chosen]
        sd = jnp.asarray(self.block_sds)[block, chosen]
        y = mean + sd[..., None] * jr.normal(key_noise, (*size, 2))
        return y.reshape(*shape, self.dim) @ jnp.asarray(self.rotation.T)


class BlockPosterior(NamedTuple):
    """Every block measured once along a random direction; closed form by block."""

    prior: BlockMixture
    design: np.ndarray
    noise_sd: float
    data: np.ndarray
    weights: np.ndarray
    means: np.ndarray
    covariances: np.ndarray
    log_evidence: float

    def shares(self, x: np.ndarray) -> np.ndarray:
        """Share of each block's posterior components among rows ``(n, dim)``: (B, 5)."""
        y = (np.asarray(x, float) @ self.prior.rotation).reshape(len(x), -1, 2)
        best = most_probable(y, self.weights, self.means, self.covariances)
        return np.stack([np.mean(best == j, axis=0) for j in range(5)], axis=1)

    def draw(self, n: int, seed: int = 1) -> np.ndarray:
        """Exact draws ``(n, dim)``."""
        rng = np.random.default_rng(seed)
        draws = np.zeros((n, self.prior.num_blocks, 2))
        for b in range(self.prior.num_blocks):
            roots = np.linalg.cholesky(self.covariances[b])
            chosen = rng.choice(5, size=n, p=self.weights[b])
            noise = rng.normal(size=(n, 2))
            draws[:, b] = self.means[b][chosen] + np.einsum(
                "nij,nj->ni", roots[chosen], noise
            )
        return draws.reshape(n, -1) @ self.prior.rotation.T

    def true_shares(self, n: int = 50_000) -> np.ndarray:
        """The same of exact draws."""
        return self.shares(self.draw(n))

    def error(self, x: np.ndarray, truth: np.ndarray | None = None) -> float:
        """Total variation of a block's mode weights, mean over blocks."""
        truth = self.true_shares() if truth is None else truth
        return float(0.5 * np.abs(self.shares(x) - truth).sum(axis=1).mean())


def block_posterior(num_blocks: int, seed: int = 0, sd: float = 0.25, tries: int = 5):
    """The posterior of :class:`BlockMixture`; about 3**B live modes."""
    prior = BlockMixture(num_blocks, seed)
    rng = np.random.default_rng(seed + 1000)
    rows, data, weights, means, covariances, evidence = [], [], [], [], [], 0.0
    for b in range(num_blocks):
        h = rng.normal(size=2)
        h /= np.linalg.norm(h)
        m, s2, w = prior.block_means[b], prior.block_sds[b] ** 2, prior.block_weights[b]
        best = None
        for _ in range(tries):
            j = rng.choice(5, p=w)
            x = m[j] + np.sqrt(s2[j]) * rng.normal(size=2)
            y = h @ x + sd * rng.normal()
            spread = s2 + sd**2
            joint = np.log(w) - 0.5 * (
                (y - m @ h) ** 2 / spread + np.log(2 * np.pi * spread)
            )
            log_z = np.logaddexp.reduce(joint)
            post = np.exp(joint - log_z)
            entropy = -np.sum(post * np.log(post + 1e-300))
            if best is None or entropy > best[0]:
                best = (entropy, y, post, log_z)
        assert best is not None
        _, y, post, log_z = best
        gain = s2[:, None] * h / (s2 + sd**2)[:, None]
        data.append(y)
        weights.append(post)
        means.append(m + gain * (y - m @ h)[:, None])
        covariances.append(
            s2[:, None, None] * np.eye(2)
            - np.einsum("ja,b->jab", gain, h) * s2[:, None, None]
        )
        row = np.zeros(prior.dim)
        row[2 * b : 2 * b + 2] = h
        rows.append(prior.rotation @ row)
        evidence += log_z
    return BlockPosterior(
        prior,
        np.array(rows),
        sd,
        np.array(data),
        np.array(weights),
        np.array(means),
        np.array(covariances),
        float(evidence),
    )
