"""Posteriors to ask of a score network: each with its truth, and what it is judged by."""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from sklearn.datasets import make_moons

import numpyro_rtk as rtk
from benchmarks.posteriors.levy import LAWS, OPERATORS, JumpPrior, gold, observed
from benchmarks.posteriors.problem import (
    Measurement,
    Problem,
    factor_model,
    log_likelihood as likelihood_of,
)
from benchmarks.shared.known_posteriors import block_posterior
from numpyro_rtk.noise import noise_variance, signal


class Case(NamedTuple):
    """A problem and the figures that draws ``(n, dim)`` of it are judged by.

    The first figure is the problem's ``error``, which rivals are tuned on.
    """

    problem: Problem
    figures: Callable[[np.ndarray], Mapping[str, float]]


def linear_case(prior, measurement: Measurement, figures, **facts) -> Case:
    """A case of a prior with scores and a linear measurement."""
    likelihood = likelihood_of(measurement)
    noise_sd = float(measurement.noise_sd)
    num_data = len(measurement.data)
    problem = Problem(
        model=factor_model(prior, likelihood),
        args=(),
        dim=prior.event_shape[0],
        draw_prior=getattr(prior, "sample", None),
        log_prior=lambda x: prior.log_density(x, 0.0),
        log_likelihood=likelihood,
        error=lambda x: next(iter(figures(x).values())),
        prior=prior,
        peak=-num_data * float(np.log(np.sqrt(2.0 * np.pi) * noise_sd)),
        measurement=measurement,
        **facts,
    )
    return Case(problem, figures)


# -- a mixture in 256 dimensions -----------------------------------------------------


class RankOneMixture:
    """Mixture of N(m_j, I + c_j c_j^T); exact noised scores at the cost of its means.

    Attributes:
        weights: ``(K,)``.
        means, spreads: m and c, ``(K, dim)``.
        loc, scale: of the noise process; the scale is one number.
    """

    def __init__(self, weights, means, spreads):
        self.weights, self.means, self.spreads = (
            np.asarray(a, float) for a in (weights, means, spreads)
        )
        self.event_shape = (self.means.shape[1],)
        self.loc = self.weights @ self.means
        off = self.means - self.loc
        second = np.sum(off**2 + self.spreads**2, axis=1)
        self.scale = float(np.sqrt(self.weights @ second / off.shape[1] + 1.0))

    def log_density(self, x, t):
        return self.log_density_and_score(x, t)[0]

    def score(self, x, t):
        return self.log_density_and_score(x, t)[1]

    def log_density_and_score(self, x, t):
        a, v = signal(t), self.scale**2 * noise_variance(t)
        plain = a**2 + v  # the variance off c
        z = x - self.loc
        means, spreads = jnp.asarray(self.means - self.loc), jnp.asarray(self.spreads)
        length = jnp.sum(spreads**2, axis=1)
        # multiplied out, for all modes at once: differences would be of K rows each
        along = spreads @ z - a * jnp.sum(means * spreads, axis=1)
        square = z @ z - 2.0 * a * (means @ z) + a**2 * jnp.sum(means**2, axis=1)
        less = a**2 / (plain + a**2 * length)
        distance = (square - less * along**2) / plain
        log_det = (len(z) - 1) * jnp.log(plain) + jnp.log(plain + a**2 * length)
        log_parts = jnp.log(jnp.asarray(self.weights)) - 0.5 * (
            distance + log_det + len(z) * jnp.log(2.0 * jnp.pi)
        )
        shares = jax.nn.softmax(log_parts)
        pull = z - a * (shares @ means) - (shares * less * along) @ spreads
        return jax.nn.logsumexp(log_parts), -pull / plain

    def sample(self, key, shape):
        key_mode, key_along, key_noise = jr.split(key, 3)
        j = jr.categorical(key_mode, jnp.log(jnp.asarray(self.weights)), shape=shape)
        along = jr.normal(key_along, shape)[..., None] * jnp.asarray(self.spreads)[j]
        noise = jr.normal(key_noise, (*shape, *self.event_shape))
        return jnp.asarray(self.means)[j] + along + noise


def mixture(
    seed: int, offset: float, is_precise: bool, dim: int = 256, num_modes: int = 10
) -> Case:
    """One datum of ten modes far apart, ``offset`` off where it should be.

    As the benchmark of Feynman-Kac models with auxiliary paths has it: weights ~ N(0, 1)^2,
    means ~ U(-8, 8), covariances I + c c^T with c ~ U(0, 1); a row of length s ~ U(0, 1) +
    .001; noise of variance U(0, 1) s^2, or 1e-8; y = A E[x] + offset.
    """
    rng = np.random.default_rng(seed)
    weights = rng.normal(size=num_modes) ** 2
    means = rng.uniform(-8.0, 8.0, size=(num_modes, dim))
    spreads = rng.uniform(size=(num_modes, dim))
    row = rng.normal(size=dim)
    length = rng.uniform() + 1e-3
    variance = 1e-8 if is_precise else rng.uniform() * length**2
    prior = RankOneMixture(weights / weights.sum(), means, spreads)
    design = (length * row / np.linalg.norm(row))[None]
    data = design @ prior.loc + offset
    measurement = Measurement(design, data, float(np.sqrt(variance)))
    truth = MixtureTruth.of(prior, measurement)
    return linear_case(prior, measurement, truth.figures, log_evidence=truth.evidence)


class MixtureTruth(NamedTuple):
    """The posterior of a :class:`RankOneMixture` given one datum, in closed form."""

    prior: RankOneMixture
    weights: np.ndarray
    means: np.ndarray
    covariances: np.ndarray
    evidence: float
    datum: tuple[np.ndarray, float, float]

    @classmethod
    def of(cls, prior: RankOneMixture, measurement: Measurement) -> "MixtureTruth":
        row, datum = measurement.design[0], measurement.data[0]
        covariances = np.eye(len(row)) + np.einsum(
            "ja,jb->jab", prior.spreads, prior.spreads
        )
        against = covariances @ row
        variance = against @ row + measurement.noise_sd**2
        residual = datum - prior.means @ row
        joint = np.log(prior.weights) - 0.5 * (
            residual**2 / variance + np.log(2.0 * np.pi * variance)
        )
        evidence = float(np.logaddexp.reduce(joint))
        means = prior.means + against * (residual / variance)[:, None]
        covariances -= against[:, :, None] * against[:, None] / variance[:, None, None]
        known = (row, float(datum), float(measurement.noise_sd))
        shares = np.exp(joint - evidence)
        return cls(prior, shares, means, covariances, evidence, known)

    def draw(self, n: int, seed: int) -> np.ndarray:
        rng = np.random.default_rng(seed)
        chosen = rng.choice(len(self.weights), size=n, p=self.weights)
        x = np.empty((n, self.means.shape[1]))
        for j in np.unique(chosen):
            # with data of hardly any noise the covariance is singular
            value, axes = np.linalg.eigh(self.covariances[j])
            root = axes * np.sqrt(np.maximum(value, 0.0))
            here = chosen == j
            x[here] = self.means[j] + rng.normal(size=(here.sum(), len(value))) @ root.T
        return x

    def modes_of(self, x: np.ndarray) -> np.ndarray:
        """The nearest mode, which in so many dimensions is the draw's own."""
        off = x @ self.means.T - 0.5 * np.sum(self.means**2, axis=1)
        return np.argmax(off, axis=1)

    def figures(self, x: np.ndarray, num_pairs: int = 6) -> dict[str, float]:
        n = min(len(x), 1000)
        x = x[np.linspace(0, len(x) - 1, n).astype(int)].astype(float)
        exact = [self.draw(n, seed) for seed in range(2 * num_pairs)]
        floor = [sliced(*pair) for pair in zip(exact[::2], exact[1::2], strict=True)]
        found = np.mean([sliced(x, y) for y in exact])
        row, datum, noise_sd = self.datum
        return {
            "sliced W1 / floor": float(found / np.mean(floor)),
            "sliced W1": float(found),
            "draws": n,
            "TV of modes": self.off(x),
            "of exact draws": float(np.mean([self.off(y) for y in exact])),
            "misfit": float(np.sqrt(np.mean(((x @ row - datum) / noise_sd) ** 2))),
        }

    def off(self, x: np.ndarray) -> float:
        """Total variation of the modes' shares."""
        counts = np.bincount(self.modes_of(x), minlength=len(self.weights))
        return 0.5 * float(np.abs(counts / len(x) - self.weights).sum())


def sliced(x: np.ndarray, y: np.ndarray, num: int = 200) -> float:
    """Sliced W1 of as many rows, over ``num`` directions."""
    rng = np.random.default_rng(0)
    directions = rng.normal(size=(x.shape[1], num))
    directions /= np.linalg.norm(directions, axis=0)
    difference = np.sort(x @ directions, axis=0) - np.sort(y @ directions, axis=0)
    return float(np.abs(difference).mean())


# -- combinatorially many modes ------------------------------------------------------


def blocks(num_blocks: int = 16) -> Case:
    """Blocks of five modes, each measured once: about 3^16 modes in 32 dimensions."""
    posterior = block_posterior(num_blocks)
    truth = posterior.true_shares()
    measurement = Measurement(posterior.design, posterior.data, posterior.noise_sd)
    exact = posterior.error(posterior.draw(4000, 5), truth)

    def figures(x):
        return {
            "TV of a block's modes": posterior.error(x, truth),
            "of exact draws": exact,
        }

    evidence = posterior.log_evidence
    return linear_case(posterior.prior, measurement, figures, log_evidence=evidence)


# -- sums of jumps -------------------------------------------------------------------


def levy_signal(seed: int, law: str, operator: str) -> Case:
    """See ``levy.py``."""
    measurement = observed(LAWS[law], OPERATORS[operator], seed)
    truth = gold(LAWS[law], measurement, seed)
    return linear_case(JumpPrior(LAWS[law]), measurement, truth.figures)


# -- shapes, by a trained network ----------------------------------------------------


def two_moons(seed: int, noise_sd: float = 0.1, datum: float = 0.25) -> Case:
    """Two moons by a score network trained on 20,000 rows; x_1 seen with sd .1.

    The truth are 2,000,000 rows of the moons themselves, weighed by the likelihood: what
    the network has not learned is an error as well.
    """
    moons = lambda n, seed: make_moons(n, noise=0.1, random_state=seed)[0]
    network = rtk.ScoreMLP((2,), key=jr.key(100 + seed))
    rows = jnp.asarray(moons(20_000, seed), jnp.float32)
    prior, _ = rtk.fit(jr.key(seed), rows, network=network, progress_bar=False)
    fresh = moons(2_000_000, 1000)
    weight = np.exp(-0.5 * ((datum - fresh[:, 1]) / noise_sd) ** 2)
    weight /= weight.sum()
    edges = np.linspace(-1.4, 2.4, 23)
    truth = np.histogram(fresh[:, 0], edges, weights=weight)[0]
    sd = np.sqrt(weight @ (fresh[:, 1] - weight @ fresh[:, 1]) ** 2)
    rng = np.random.default_rng(seed)

    def figures(x):
        off = lambda v: 0.5 * np.abs(np.histogram(v, edges)[0] / len(v) - truth).sum()
        exact = rng.choice(22, size=(20, len(x)), p=truth / truth.sum()) + 0.5
        cells = [np.bincount(row.astype(int), minlength=22) / len(x) for row in exact]
        return {
            "TV of x_0 in 22 cells": float(off(x[:, 0])),
            "of exact draws": float(0.5 * np.abs(cells - truth).sum(axis=1).mean()),
            "sd ratio of x_1": float(x[:, 1].std() / sd),
        }

    measurement = Measurement(np.array([[0.0, 1.0]]), np.array([datum]), noise_sd)
    return linear_case(prior, measurement, figures)
