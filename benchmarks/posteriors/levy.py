"""Signals that are sums of independent jumps (Levy processes), and their gold posteriors.

Positions are the *jumps* u, ``(dim,)``: their law is a product, so that its noised scores
are exact; the signal is x = cumsum(u), and an operator is composed with the sum. A law of
jumps is a scale mixture of centred normals, which are finitely many: for heavy tails that
is the law itself, not an approximation to it, for network and truth alike.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from scipy.stats import expon, invgamma

from benchmarks.posteriors.problem import Measurement
from numpyro_rtk.noise import noise_variance, signal

DIM, SNR = 64, 25.0  # dB
NODES = (np.arange(60) + 0.5) / 60


class Jumps(NamedTuple):
    """Weights and variances ``(J,)`` of the normals, and the noise's scale."""

    weights: np.ndarray
    variances: np.ndarray
    scale: float


def _equal(variances, scale=None) -> Jumps:
    weights = np.full(len(variances), 1.0 / len(variances))
    return Jumps(weights, variances, scale or float(np.sqrt(weights @ variances)))


def _laplace(scale: float = 1.0) -> np.ndarray:
    return 2.0 * scale**2 * expon.ppf(NODES)


LAWS = {
    "Gauss .25": _equal(np.array([0.25])),
    "Laplace 1": _equal(_laplace()),
    "Bernoulli-Laplace (.1, 1)": Jumps(
        np.append(0.9, np.full(60, 0.1 / 60)),
        np.append(1e-8, _laplace()),
        float(np.sqrt(0.1 * _laplace().mean())),
    ),
    # no variance: the noise's scale is that of nine jumps in ten
    "Student-t 1": _equal(invgamma.ppf(NODES, 0.5, scale=0.5), 6.3),
}


class JumpPrior:
    """Independent jumps of one law."""

    def __init__(self, law: Jumps, dim: int = DIM):
        self.law, self.event_shape = law, (dim,)
        self.loc, self.scale = np.zeros(dim), law.scale

    def score(self, x, t):
        return jax.grad(self.log_density)(x, t)

    def log_density(self, x, t):
        variance = signal(t) ** 2 * jnp.asarray(self.law.variances)
        variance += self.law.scale**2 * noise_variance(t)
        log_parts = jnp.log(jnp.asarray(self.law.weights)) - 0.5 * (
            x[:, None] ** 2 / variance + jnp.log(2.0 * jnp.pi * variance)
        )
        return jnp.sum(jax.nn.logsumexp(log_parts, axis=1))

    def sample(self, key, shape):
        key_law, key_normal = jr.split(key)
        size = (*shape, *self.event_shape)
        chosen = jr.categorical(
            key_law, jnp.log(jnp.asarray(self.law.weights)), -1, size
        )
        sd = jnp.sqrt(jnp.asarray(self.law.variances))
        return sd[chosen] * jr.normal(key_normal, size)


def _operators(dim: int = DIM) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(5)
    taps = np.exp(-0.5 * (np.arange(-6, 7) / 2.0) ** 2)
    blur = np.zeros((dim, dim))
    for place, tap in zip(range(-6, 7), taps / taps.sum(), strict=True):
        blur += tap * np.roll(np.eye(dim), place, axis=1)
    modes = np.fft.rfft(np.eye(dim), norm="ortho", axis=0)
    kept = np.append(np.arange(5), 5 + np.sort(rng.choice(28, 11, replace=False)))
    rows = np.concatenate([modes.real[kept], modes.imag[kept]])
    return {
        "identity": np.eye(dim),
        "convolution": blur,
        "sampling": np.eye(dim)[rng.uniform(size=dim) < 0.6],
        "Fourier": rows[np.sum(rows**2, axis=1) > 1e-9] * np.sqrt(2.0),
    }


OPERATORS = _operators()


def observed(law: Jumps, operator: np.ndarray, seed: int) -> Measurement:
    """A simulated signal's measurement, at 25 dB of the median signal's power."""
    rng = np.random.default_rng(seed)
    sd = np.sqrt(law.variances)
    chosen = rng.choice(len(sd), size=(1000, DIM), p=law.weights)
    jumps = sd[chosen] * rng.normal(size=chosen.shape)
    design = operator @ np.tril(np.ones((DIM, DIM)))
    seen = jumps @ design.T
    noise_sd = np.sqrt(np.median(np.mean(seen**2, axis=1)) / 10.0 ** (SNR / 10.0))
    data = seen[0] + noise_sd * rng.normal(size=len(design))
    return Measurement(design, data, float(noise_sd))


class GoldTruth(NamedTuple):
    """Draws of the posterior's signals by Gibbs, ``(chains, n, dim)``."""

    signals: np.ndarray

    def figures(self, jumps: np.ndarray) -> dict[str, float]:
        """Of draws of the jumps; expected over what the data leave open."""
        x = np.cumsum(np.asarray(jumps, float), axis=1)
        gold = self.signals.reshape(-1, x.shape[1])
        error = np.sum((x.mean(axis=0) - gold.mean(axis=0)) ** 2)
        low, high = np.quantile(x, (0.05, 0.95), axis=0)
        return {
            "gap to the MMSE, dB": 10.0
            * np.log10(1.0 + error / gold.var(axis=0).sum()),
            "coverage of 90 %": float(np.mean((gold >= low) & (gold <= high))),
            "of the gold chains": self.apart,
        }

    @property
    def apart(self) -> float:
        """The gap of half of the chains to the other half: the truth's own error."""
        one, other = np.split(self.signals, 2)
        error = np.sum((one.mean(axis=(0, 1)) - other.mean(axis=(0, 1))) ** 2)
        return 10.0 * np.log10(1.0 + error / self.signals.var(axis=(0, 1)).sum())


def gold(
    law: Jumps,
    measurement: Measurement,
    seed: int = 0,
    num_chains: int = 32,
    n: int = 300,
) -> GoldTruth:
    """Gibbs on normals and jumps: all jumps given their normals, then one by one with them.

    The second is what lets a jump of no size become one. Neighbouring jumps change places
    by Metropolis. As many sweeps are left out as are kept.
    """
    rng = np.random.default_rng(seed)
    design, data, noise_sd = measurement
    dim, gram = design.shape[1], design.T @ design / noise_sd**2
    pull = design.T @ data / noise_sd**2
    chosen = rng.choice(len(law.weights), size=(num_chains, dim), p=law.weights)
    kept = []
    for sweep in range(2 * n):
        variances = law.variances[chosen]
        x = _all_jumps(rng, gram, pull, variances)
        _one_by_one(rng, law, gram, pull, x, chosen)
        _change_places(rng, gram, pull, x, chosen)
        if sweep >= n:
            kept.append(np.cumsum(x, axis=1))
    return GoldTruth(np.stack(kept, axis=1))


def _all_jumps(rng, gram, pull, variances):
    """x given the normals: by precision on the scale of their sds, which is well posed."""
    sd = np.sqrt(variances)
    precision = np.eye(len(gram)) + sd[:, :, None] * gram * sd[:, None, :]
    root = np.linalg.cholesky(precision)
    upper = np.swapaxes(root, 1, 2)
    half = np.linalg.solve(root, (sd * pull)[..., None])
    noise = rng.normal(size=half.shape)
    return sd * np.linalg.solve(upper, half + noise)[..., 0]


def _one_by_one(rng, law, gram, pull, x, chosen) -> None:
    """In place: each jump with its normal, given the others."""
    towards = pull - x @ gram
    for i in range(x.shape[1]):
        linear = towards[:, i] + gram[i, i] * x[:, i]
        spread = 1.0 + law.variances * gram[i, i]
        log_parts = np.log(law.weights) - 0.5 * np.log(spread)
        log_parts = log_parts + 0.5 * linear[:, None] ** 2 * law.variances / spread
        gumbel = rng.gumbel(size=log_parts.shape)
        chosen[:, i] = np.argmax(log_parts + gumbel, axis=1)
        variance = law.variances[chosen[:, i]] / spread[chosen[:, i]]
        new = variance * linear + np.sqrt(variance) * rng.normal(size=len(x))
        towards -= np.outer(new - x[:, i], gram[i])
        x[:, i] = new


def _change_places(rng, gram, pull, x, chosen) -> None:
    """In place: neighbours exchanged, with their normals; the prior is the same."""
    towards = pull - x @ gram
    for i in range(x.shape[1] - 1):
        by = x[:, i + 1] - x[:, i]
        direction = gram[i] - gram[i + 1]
        curve = direction[i] - direction[i + 1]
        gain = by * (towards[:, i] - towards[:, i + 1]) - 0.5 * by**2 * curve
        taken = np.log(rng.uniform(size=len(x))) < gain
        towards -= np.outer(by * taken, direction)
        for values in (x, chosen):
            pair = values[taken, i].copy()
            values[taken, i] = values[taken, i + 1]
            values[taken, i + 1] = pair
