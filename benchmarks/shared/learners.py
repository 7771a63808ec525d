"""Rivals that learn a normalised density from rows ``(n, dim)``, each tuned a little.

All keep a tenth of the rows back: the flows to stop and to choose a learning rate, the
mixture to choose the number of components, the kind of covariance and a floor of the
variances (then it is fitted to all rows).
"""

import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from flowjax.bijections import RationalQuadraticSpline
from flowjax.distributions import Normal
from flowjax.flows import coupling_flow, masked_autoregressive_flow
from flowjax.train import fit_to_data
from sklearn.mixture import GaussianMixture

FLOWS = {
    "coupling spline flow": lambda key, dim: coupling_flow(
        key,
        base_dist=Normal(jnp.zeros(dim)),
        transformer=RationalQuadraticSpline(knots=8, interval=4),
    ),
    "masked autoregressive flow": lambda key, dim: masked_autoregressive_flow(
        key, base_dist=Normal(jnp.zeros(dim))
    ),
}
LEARNING_RATES = (5e-4, 2e-3, 5e-3)  # the first is flowjax's default


class Learned(NamedTuple):
    """A fitted density.

    Attributes:
        log_density: of rows ``(m, dim)``, ``(m,)``, in float64.
        sample: draws ``(num, dim)``; None for a density without exact ones.
        evaluate: log density of one row in JAX; None outside of it.
        note: what was chosen.
    """

    log_density: Callable[[np.ndarray], np.ndarray]
    sample: Callable[[int], np.ndarray] | None
    evaluate: Callable[[jax.Array], jax.Array] | None
    note: str


def flow(
    name: str,
    rows: np.ndarray,
    seed: int,
    learning_rates=LEARNING_RATES,
    max_epochs: int = 300,
) -> Learned:
    """The flow of that name with the least validation loss over the learning rates."""
    dim = rows.shape[1]
    mean, sd = rows.mean(axis=0), rows.std(axis=0)
    standard = lambda x: jnp.asarray((x - mean) / sd, jnp.float32)
    best: Any = (np.inf, None, "")
    for learning_rate in learning_rates:
        fitted, losses = fit_to_data(
            jr.key(seed + 1),
            FLOWS[name](jr.key(seed), dim),
            standard(rows),
            learning_rate=learning_rate,
            # small tables take more passes for as many steps
            batch_size=min(max(len(rows) // 20, 16), 512),
            max_epochs=max_epochs,
            max_patience=10,
            show_progress=False,
        )
        loss, epochs = min(losses["val"]), len(losses["val"])
        note = f"learning rate {learning_rate:g}, {epochs} epochs"
        best = min(best, (loss, fitted, note), key=lambda entry: entry[0])
    _, fitted, note = best
    log_prob = jax.jit(lambda x: fitted.log_prob(x))
    return Learned(
        lambda x: np.asarray(log_prob(standard(x)), float) - np.log(sd).sum(),
        lambda num: np.asarray(fitted.sample(jr.key(2), (num,))) * sd + mean,
        lambda x: fitted.log_prob((x - mean) / sd),
        note,
    )


def mixture(
    rows: np.ndarray,
    seed: int,
    components=(1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64),
    kinds=("full", "tied", "diag"),
    floors=(1e-6, 1e-2, 1e-1),
) -> Learned:
    """A Gaussian mixture by EM, chosen on a tenth of the rows, fitted to all."""
    rows = np.random.default_rng(seed).permutation(rows)
    mean, sd = rows.mean(axis=0), rows.std(axis=0)
    z = (rows - mean) / sd
    held_out = max(len(z) // 10, 2)
    chosen: Any = (-np.inf, None)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for kind in kinds:
            for floor in floors:
                failures = 0
                best_here = -np.inf
                for num in components:
                    # a curve needs many components before one more helps
                    is_falling = failures >= 2 and num > 16
                    # a full covariance needs as many rows as it has columns
                    per_component = z.shape[1] if kind == "full" else 1
                    if is_falling or num * per_component > len(z) - held_out:
                        break
                    by_em = GaussianMixture(
                        num, covariance_type=kind, reg_covar=floor, random_state=seed
                    )
                    value = by_em.fit(z[held_out:]).score(z[:held_out])
                    failures = 0 if value > best_here else failures + 1
                    best_here = max(best_here, value)
                    chosen = max(chosen, (value, by_em), key=lambda entry: entry[0])
        fitted = chosen[1].fit(z)
    return Learned(
        lambda x: fitted.score_samples((x - mean) / sd) - np.log(sd).sum(),
        lambda num: fitted.sample(num)[0] * sd + mean,
        None,
        f"{fitted.n_components} {fitted.covariance_type}, floor {fitted.reg_covar:g}",
    )
