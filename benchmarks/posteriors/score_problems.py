"""Posteriors to ask of a score network: each with its truth, and what it is judged by."""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import numpyro.distributions as dist
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


def case_of(prior, likelihood, figures, **facts) -> Case:
    """A case of a prior with scores and any log likelihood ``x (dim,) -> ()``."""
    problem = Problem(
        model=factor_model(prior, likelihood),
        args=(),
        dim=prior.event_shape[0],
        draw_prior=getattr(prior, "sample", None),
        log_prior=lambda x: prior.log_density(x, 0.0),
        log_likelihood=likelihood,
        error=lambda x: next(iter(figures(x).values())),
        prior=prior,
        **facts,
    )
    return Case(problem, figures)


def linear_case(prior, measurement: Measurement, figures, **facts) -> Case:
    """A case of a prior with scores and a linear measurement."""
    noise_sd = float(measurement.noise_sd)
    peak = -len(measurement.data) * float(np.log(np.sqrt(2.0 * np.pi) * noise_sd))
    facts |= {"peak": peak, "measurement": measurement}
    return case_of(prior, likelihood_of(measurement), figures, **facts)


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


# -- a simple likelihood, a complex posterior, by a trained network ------------------

BOX = 3.0  # parameters are uniform in [-BOX, BOX]^5
SLCP_PARAMETERS = (0.7, -2.9, -1.0, -0.9, 0.6)


def slcp(seed: int, least_sd: float) -> Case:
    """SLCP: theta in five dimensions from four draws of N(m(theta), S(theta)).

    G. Papamakarios, D. Sterratt, I. Murray, *Sequential neural likelihood*, AISTATS 2019:
    the likelihood is a Gaussian's, the posterior has four equal modes and is cut off at
    the box. The prior is a score network trained on 20,000 rows of the box; the truth is
    the posterior under the box itself: what the network has not learned is an error too.
    No sd is below ``least_sd``, which up to .1 leaves the posterior what it is.
    """
    rng = np.random.default_rng(seed)
    data = slcp_data(rng)
    network = rtk.ScoreMLP((5,), key=jr.key(100 + seed))
    rows = jnp.asarray(rng.uniform(-BOX, BOX, size=(20_000, 5)), jnp.float32)
    prior, _ = rtk.fit(jr.key(seed), rows, network=network, progress_bar=False)
    truth = SLCPTruth.of(slcp_posterior(data, 1_000_000, seed))
    return case_of(prior, slcp_log_likelihood(data, least_sd), truth.figures)


def slcp_data(rng: np.random.Generator) -> np.ndarray:
    """Four draws by the parameters that the paper has, ``(4, 2)``."""
    *mean, third, fourth, fifth = SLCP_PARAMETERS
    sd, correlation = np.square([third, fourth]), np.tanh(fifth)
    covariance = np.outer(sd, sd) * [[1.0, correlation], [correlation, 1.0]]
    return rng.multivariate_normal(mean, covariance, size=4)


def slcp_log_likelihood(data: np.ndarray, least_sd: float):
    """``theta (5,) -> ()``: sds theta_3^2 and theta_4^2, correlation tanh theta_5."""
    data = jnp.asarray(data)

    def value(theta):
        # where theta_3 or theta_4 is 0, as at the mean of the prior, where all who look
        # ahead begin, a draw has sd 0 and the log likelihood would be infinite
        sd = jnp.maximum(jnp.square(theta[2:4]), least_sd)
        first, second = ((data - theta[:2]) / sd).T
        # sqrt(1 - tanh^2) = 1 / cosh, which stays above 0 where the former is rounded to it
        given = dist.Normal(jnp.tanh(theta[4]) * first, 1.0 / jnp.cosh(theta[4]))
        log_prob = dist.Normal().log_prob(first) + given.log_prob(second)
        return jnp.sum(log_prob) - len(data) * jnp.sum(jnp.log(sd))

    return value


def slcp_posterior(
    data: np.ndarray, n: int, seed: int, num_cells: int = 150
) -> np.ndarray:
    """Exact draws, ``(., 5)``: of ``n`` those whose theta_1, theta_2 are in the box.

    Were theta_1, theta_2 in no box, they would be N(mean of the data, S / 4) given the
    rest, whose density would be |S|^(-3/2) exp(-tr(S^-1 A) / 2) with A the scatter of the
    data. That one is tabulated at the middles of cells where theta_3, theta_4 > 0, and a
    draw is evenly in its cell. The signs of theta_3 and theta_4 are even.
    """
    rng = np.random.default_rng(seed)
    middle = (np.arange(num_cells) + 0.5) / num_cells
    third, fourth, fifth = np.meshgrid(
        BOX * middle, BOX * middle, 2.0 * BOX * middle - BOX, indexing="ij"
    )
    off = data - data.mean(axis=0)
    (a, b), (_, c) = off.T @ off
    one, two = third**2, fourth**2
    square = a / one**2 - 2.0 * np.tanh(fifth) * b / (one * two) + c / two**2
    log_density = -3.0 * np.log(one * two / np.cosh(fifth))
    log_density -= 0.5 * square * np.cosh(fifth) ** 2
    mass = np.exp(log_density - log_density.max()).ravel()
    chosen = rng.choice(mass.size, size=n, p=mass / mass.sum())
    rest = np.stack([g.ravel()[chosen] for g in (third, fourth, fifth)], axis=1)
    rest += rng.uniform(-0.5, 0.5, size=(n, 3)) * BOX * np.array([1, 1, 2]) / num_cells
    first, other = rng.normal(size=(2, n))
    correlation = np.tanh(rest[:, 2])
    second = correlation * first + np.sqrt(1.0 - correlation**2) * other
    mean = data.mean(axis=0) + np.stack([first, second], axis=1) * rest[:, :2] ** 2 / 2
    rest[:, :2] *= rng.choice([-1.0, 1.0], size=(n, 2))
    return np.concatenate([mean, rest], axis=1)[np.all(np.abs(mean) < BOX, axis=1)]


class SLCPTruth(NamedTuple):
    """SLCP's posterior by exact draws, which others are held against.

    Attributes:
        exact: ``(n, 5)``.
        edges: of cells of equal shares, of each of the last three, ``(3, cells + 1)``.
    """

    exact: np.ndarray
    edges: np.ndarray

    @classmethod
    def of(cls, exact: np.ndarray, num_cells: int = 20) -> "SLCPTruth":
        parts = np.linspace(0.0, 1.0, num_cells + 1)
        return cls(exact, np.quantile(folded(exact)[:, 2:], parts, axis=0).T)

    def figures(self, x: np.ndarray, num_repeats: int = 20) -> dict[str, float]:
        """Rivals are tuned on the first: by symmetry a wrong law has even modes as well."""
        rng = np.random.default_rng(0)
        as_many = [rng.choice(self.exact, size=len(x)) for _ in range(num_repeats)]
        chance = lambda off: float(np.mean([off(y) for y in as_many]))
        exact, found = folded(self.exact), folded(x)
        away = np.abs(found.mean(axis=0) - exact.mean(axis=0)) / exact.std(axis=0)
        return {
            "TV of |theta_3|, |theta_4|, theta_5 in cells": self.off(x),
            "of exact draws": chance(self.off),
            "TV of the four modes": off_even(x),
            "by exact draws": chance(off_even),
            "mean off, sd": float(away.max()),
            "outside the box": float(np.mean(np.any(np.abs(x) > BOX, axis=1))),
        }

    def off(self, x: np.ndarray) -> float:
        """Total variation in cells, one beyond either end with them; mean of the three."""
        each = []
        for edges, values in zip(self.edges, folded(x)[:, 2:].T, strict=True):
            cells = np.searchsorted(edges, values)
            shares = np.bincount(cells, minlength=len(edges) + 1) / len(x)
            even = 1.0 / (len(edges) - 1)
            beyond = shares[0] + shares[-1]
            each.append(0.5 * (np.abs(shares[1:-1] - even).sum() + beyond))
        return float(np.mean(each))


def folded(x: np.ndarray) -> np.ndarray:
    """All four modes on one."""
    return np.concatenate([x[:, :2], np.abs(x[:, 2:4]), x[:, 4:]], axis=1)


def off_even(x: np.ndarray) -> float:
    """Total variation of the modes' shares from a quarter each."""
    mode = 2 * (x[:, 2] > 0) + (x[:, 3] > 0)
    return 0.5 * float(np.abs(np.bincount(mode, minlength=4) / len(x) - 0.25).sum())
