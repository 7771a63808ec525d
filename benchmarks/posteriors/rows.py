"""RTKParticleGibbs in a plate: each row decided about by itself, or all of them at once.

    python -m benchmarks.posteriors.rows
    python -m benchmarks.posteriors.rows --quick

Every row has two modes that its datum cannot tell apart (closed form). Beside it the same
model with a term that couples the rows, by less than rounding: all rows are then one. Four
chains; ESS is that of which mode a row is in. Wall time is that of the draws; from 100 rows
on it holds their compilation, some seconds.
"""

import argparse
import time

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import numpyro
import numpyro.distributions as dist
from numpyro.diagnostics import effective_sample_size
from scipy.stats import norm

import numpyro_rtk as rtk
from benchmarks.shared.runs import vectorised
from benchmarks.shared.tables import Table

WEIGHTS, MEANS, VARIANCE = np.array([0.3, 0.7]), [[-2.0, 0.0], [2.0, 1.0]], 0.3
PRIOR = rtk.GaussianMixture(WEIGHTS, MEANS, [VARIANCE * np.eye(2)] * 2)
SD, CHAINS, WARMUP = 0.5, 4, 20
# rows: draws of a chain, by row and at once
SIZES = {1: (1000, 300), 10: (1000, 300), 100: (1000, 300), 1000: (100, None)}


def model(y, is_coupled):
    with numpyro.plate("rows", len(y)):
        x = numpyro.sample("x", rtk.LearnedPrior(PRIOR))
        numpyro.sample("y", dist.Normal(x[..., 1], SD), obs=y)
    if is_coupled:
        numpyro.factor("coupling", -1e-12 * jnp.square(jnp.sum(x)))


def share_of_second(y: np.ndarray) -> np.ndarray:
    """Probability of the second mode, by row."""
    spread = np.sqrt(VARIANCE + SD**2)
    parts = WEIGHTS * norm.pdf(y[:, None], np.array(MEANS)[:, 1], spread)
    return parts[:, 1] / parts.sum(axis=1)


def row(table: Table, num_rows: int, draws: int, is_coupled: bool) -> None:
    y = np.linspace(-0.5, 1.0, num_rows) if num_rows > 1 else np.zeros(1)
    data = jnp.asarray(y, jnp.float32)
    mcmc = vectorised(rtk.RTKParticleGibbs(model), WARMUP, draws, CHAINS)
    mcmc.warmup(jr.key(0), data, is_coupled)
    for _ in range(2):  # the second time nothing is compiled
        start = time.time()
        mcmc.run(jr.key(1), data, is_coupled)
        jax.block_until_ready(mcmc.last_state)
        seconds = time.time() - start
        if num_rows > 10:
            break
    right = np.asarray(mcmc.get_samples(group_by_chain=True)["x"])[..., 0] > 0.0
    ess = effective_sample_size(right.astype(float)) / (CHAINS * draws)
    truth = share_of_second(y)
    error = np.sqrt(truth * (1.0 - truth) / (CHAINS * draws * np.minimum(ess, 1.0)))
    off = np.abs(right.mean(axis=(0, 1)) - truth)
    found = rtk.diagnose(mcmc)
    table.add(
        num_rows,
        "at once" if is_coupled else "by row",
        CHAINS * draws,
        float(found.moved.mean()),
        float(found.sample_size.min()),
        float(ess.mean()),
        float(ess.min()),
        float(off.mean()),
        float((off / error).max()),
        1e3 * seconds / draws,
    )


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--rows", nargs="+", type=int, choices=SIZES)
    args = parser.parse_args()
    columns = ("rows", "decided", "draws", "moved", "least ESS of 64", "ESS a draw")
    columns += ("of the worst row", "mean |P - exact|", "worst z", "ms a draw")
    table = Table("rows", columns)
    for num_rows in args.rows or list(SIZES)[: 2 if args.quick else None]:
        for is_coupled, draws in zip((False, True), SIZES[num_rows], strict=True):
            if draws is not None:
                row(table, num_rows, 20 if args.quick else draws, is_coupled)


if __name__ == "__main__":
    main()
