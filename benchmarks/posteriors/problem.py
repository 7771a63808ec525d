"""What can enter the contest: a NumPyro model, the same as plain functions, its truth."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist

import numpyro_rtk as rtk
from benchmarks.shared.runs import make_model
from numpyro_rtk.density import loc_and_scale


class ScoreAlone:
    """A density of which only the score is known."""

    def __init__(self, density):
        self._density = density
        self.event_shape = density.event_shape
        self.loc, self.scale = loc_and_scale(density)

    def score(self, x, t):
        return self._density.score(x, t)


class Measurement(NamedTuple):
    """``data ~ Normal(design @ x, noise_sd)``: ``(m,)``, ``(m, dim)``, a scalar."""

    design: np.ndarray
    data: np.ndarray
    noise_sd: float


class Problem(NamedTuple):
    """A posterior with one real vector ``x``.

    Attributes:
        model: the NumPyro model; its only latent site is ``x``, ``(dim,)``.
        args: its arguments.
        dim: of ``x``.
        draw_prior: exact prior draws, ``(key, shape) -> (*shape, dim)``.
        log_prior: normalised log density of the prior at a flat position.
        log_likelihood: everything else in the model, at a flat position.
        error: of draws ``(n, dim)``; total variation of the mode weights where nothing
            else is said.
        mean, sd: of each coordinate in the posterior; None where unknown.
        log_evidence: nan where unknown.
        prior: the prior as a density with exact scores at every noise level.
        peak: largest value of the log likelihood of a measurement with Gaussian noise;
            nan for other likelihoods.
        is_learnable: whether the prior is worth learning from draws (not one Gaussian).
        options: of ``RTKReplicaExchange``.
        measurement: the likelihood, where it is a linear measurement.
    """

    model: Callable
    args: tuple
    dim: int
    draw_prior: Callable[[jax.Array, tuple[int, ...]], jax.Array]
    log_prior: Callable[[jax.Array], jax.Array]
    log_likelihood: Callable[[jax.Array], jax.Array]
    error: Callable[[np.ndarray], float]
    mean: np.ndarray | None = None
    sd: np.ndarray | None = None
    log_evidence: float = np.nan
    prior: Any = None
    peak: float = np.nan
    is_learnable: bool = False
    options: dict = {}
    measurement: Measurement | None = None


def factor_model(prior, log_likelihood):
    """``x ~ prior`` and any log likelihood of ``x``."""
    prior = rtk.LearnedPrior(prior)

    def model():
        x = numpyro.sample("x", prior)
        numpyro.factor("likelihood", log_likelihood(x))

    return model


def log_likelihood(posterior):
    """The likelihood of a linear measurement at a flat position."""
    design, data = jnp.asarray(posterior.design), jnp.asarray(posterior.data)

    def value(x):
        noise = dist.Normal(design @ x, posterior.noise_sd)
        return jnp.sum(noise.log_prob(data))

    return value


def linear_problem(posterior, **size) -> Problem:
    """A posterior of ``known_posteriors.py``; ``size`` is of its ``true_shares``."""
    data, prior = jnp.asarray(posterior.data), posterior.prior
    truth = posterior.true_shares(**size)
    return Problem(
        model=make_model(posterior),
        args=(data,),
        dim=prior.event_shape[0],
        draw_prior=prior.sample,
        log_prior=lambda x: prior.log_density(x, 0.0),
        log_likelihood=log_likelihood(posterior),
        error=lambda x: posterior.error(x, truth),
        mean=getattr(posterior, "mean", None),
        sd=getattr(posterior, "sd", None),
        log_evidence=posterior.log_evidence,
        prior=prior,
        peak=-len(data) * float(np.log(np.sqrt(2.0 * np.pi) * posterior.noise_sd)),
        is_learnable=True,
        measurement=Measurement(posterior.design, posterior.data, posterior.noise_sd),
    )
