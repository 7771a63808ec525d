"""Exact networks of a mixture of two Gaussians, of every schedule and prediction."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np

import numpyro_rtk as rtk
from numpyro_rtk import schedules
from numpyro_rtk.noise import angle_ladder, log_snr_ladder

LOC, SCALE = np.array([3.0, -1.0]), np.array([0.5, 2.0])
WEIGHTS = np.array([0.3, 0.7])
MEANS = np.array([[-1.1, 0.4], [0.7, -0.3]])
COVARIANCES = np.array([[[0.05, 0.02], [0.02, 0.1]], [[0.4, -0.1], [-0.1, 0.2]]])
BETAS = np.linspace(1e-4, 0.02, 1000)
PRODUCTS = np.cumprod(1.0 - BETAS)
LOG_NOISE = 0.5 * np.log(1.0 / PRODUCTS - 1.0)


def of_vp(beta_min, beta_max, end):
    def alpha_and_sigma(time):
        total = beta_min * time + 0.5 * (beta_max - beta_min) * time**2 / end
        return jnp.exp(-0.5 * total), jnp.sqrt(-jnp.expm1(-total))

    return alpha_and_sigma


def of_ddpm(time):
    r = jnp.exp(jnp.interp(time, jnp.arange(1000.0), jnp.asarray(LOG_NOISE)))
    return 1.0 / jnp.sqrt(1.0 + r**2), r / jnp.sqrt(1.0 + r**2)


# schedule, and signal and noise of its network's time, written down a second time
SCHEDULES: dict[str, tuple[schedules.Schedule, Any]] = {
    "VP": (schedules.VP(0.1, 20.0), of_vp(0.1, 20.0, 1.0)),
    "constant rate": (schedules.VP(1.0, 1.0, end=10.0), of_vp(1.0, 1.0, 10.0)),
    "DDPM": (schedules.DDPM(PRODUCTS), of_ddpm),
    "VE": (schedules.VE(0.01, 50.0), lambda sigma: (1.0, sigma)),
    "VE by fraction": (
        schedules.VE(0.01, 50.0, time_is="fraction"),
        lambda time: (1.0, 0.01 * 5000.0**time),
    ),
    "EDM": (schedules.EDM(0.6), lambda sigma: (1.0, sigma)),
    "raw EDM": (schedules.EDM(0.6, raw=True), lambda time: (1.0, jnp.exp(4.0 * time))),
    "FlowMatching": (schedules.FlowMatching(), lambda time: (time, 1.0 - time)),
    "RectifiedFlow": (schedules.RectifiedFlow(), lambda time: (1.0 - time, time)),
    "OU": (
        schedules.OU(),
        lambda t: (jnp.exp(-t), jnp.sqrt(-jnp.expm1(-2.0 * t))),
    ),
}
CASES = [
    (name, predicts)
    for name, (schedule, _) in SCHEDULES.items()
    for predicts in schedule.predictions
    if name != "raw EDM" or predicts == "data"
]


class Exact(eqx.Module):
    """The network that a mixture would have, by Bayes' rule in its own units."""

    weights: jax.Array
    means: jax.Array
    covariances: jax.Array
    name: str = eqx.field(static=True)
    predicts: str = eqx.field(static=True)
    sign: float = eqx.field(static=True, default=1.0)

    def __call__(self, x, time):
        alpha, sigma = SCHEDULES[self.name][1](time)
        if self.name == "raw EDM":
            x = x * jnp.sqrt(sigma**2 + 0.6**2)
        clean = self.clean(x, alpha, sigma)
        noise = (x - alpha * clean) / sigma
        velocity = {
            "FlowMatching": clean - noise,
            "RectifiedFlow": noise - clean,
        }.get(self.name, alpha * noise - sigma * clean)
        out = {
            "noise": noise,
            "data": clean,
            "velocity": velocity,
            "score": -noise / sigma,
        }[self.predicts]
        if self.name == "raw EDM":
            total = sigma**2 + 0.6**2
            out = (out - 0.6**2 / total * x) * jnp.sqrt(total) / (0.6 * sigma)
        return self.sign * out

    def clean(self, x, alpha, sigma):
        """E[x_0 | x], every component's posterior mean by its share."""
        spread = alpha**2 * self.covariances + sigma**2 * jnp.eye(2)
        off = x - alpha * self.means
        pulled = jnp.einsum("jab,jb->ja", jnp.linalg.inv(spread), off)
        log_share = jnp.log(self.weights) - 0.5 * (
            jnp.sum(off * pulled, axis=-1) + jnp.linalg.slogdet(spread)[1]
        )
        each = self.means + alpha * jnp.einsum("jab,jb->ja", self.covariances, pulled)
        return jax.nn.softmax(log_share) @ each


def exact(name, predicts, **changes):
    arrays = (jnp.asarray(a) for a in (WEIGHTS, MEANS, COVARIANCES))
    return Exact(*arrays, name=name, predicts=predicts, **changes)


def wrapped(name, predicts, fn=None, **options):
    options = {"loc": LOC, "scale": SCALE, **options}
    return rtk.ScoreModel.from_network(
        exact(name, predicts) if fn is None else fn,
        (2,),
        predicts=predicts,
        **{"schedule": SCHEDULES[name][0], **options},
    )


def true_score(x, t):
    """The mixture's on the user's scale, with the same noise process."""
    mixture = rtk.GaussianMixture(WEIGHTS, MEANS, COVARIANCES)
    return mixture.score((x - LOC) / SCALE, t) / SCALE


def error(model_):
    """Largest over both ladders, at noised draws, in units of the score's own size."""
    times = np.concatenate([angle_ladder(13)[1:], log_snr_ladder(16)[1:], [1e-4]])
    z0 = rtk.GaussianMixture(WEIGHTS, MEANS, COVARIANCES).sample(jr.key(0), (64,))
    t = jnp.asarray(times)[:, None]
    noise = jnp.sqrt(-jnp.expm1(-2.0 * t))[..., None] * jr.normal(jr.key(1), z0.shape)
    x = LOC + SCALE * (jnp.exp(-t)[..., None] * z0 + noise)
    off = lambda model_, x, t: (model_.score(x, t) - true_score(x, t)) * SCALE
    return float(jnp.max(jnp.abs(eqx.filter_jit(off)(model_, x, t))))
