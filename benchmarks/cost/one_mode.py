"""A model whose learned part is weak and whose posterior has one mode: the cost of safety.

    python -m benchmarks.cost.one_mode
    python -m benchmarks.cost.one_mode --quick  # does it run

The hierarchical model of ``examples/yesterdays_posterior.py``: a learned prior on two
parameters, twelve ordinary sites. Effective sample size (the worst of all sites) per draw,
per evaluation and per second of NUTS, of ``RTKReplicaExchange``, and of the same with plain
swaps, all in one process, compilation left out by timing a second run.
"""

import argparse
import time

import arviz as az
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from numpyro.infer import NUTS

import numpyro_rtk as rtk
from benchmarks.shared.runs import vectorised
from benchmarks.shared.tables import Table, with_error
from examples import yesterdays_posterior as example

CHAINS = 8
COLUMNS = (
    "kernel",
    "ESS / draw",
    "ESS / 1,000 evaluations",
    "ESS / s",
    "s",
    "population's spread",
)


EXCHANGES = {
    "RTKReplicaExchange": {},
    "6 levels, 1 sweep": {"num_levels": 6, "num_sweeps": 1},
    "plain swaps, 14 levels": {"exchange": "swap"},
}
QUICK = ("6 levels, 1 sweep",)


def measure(table: Table, name, kernel, data, num_samples: int, field: str) -> None:
    mcmc = vectorised(kernel, 300, num_samples, CHAINS, jit_model_args=True)
    mcmc.warmup(jr.key(0), data)
    mcmc.run(jr.key(1), data, extra_fields=(field,))
    jax.block_until_ready(mcmc.get_samples())
    start = time.perf_counter()
    mcmc.run(jr.key(2), data, extra_fields=(field,))
    samples = jax.device_get(mcmc.get_samples(group_by_chain=True))
    seconds = time.perf_counter() - start
    kept = {k: np.asarray(v) for k, v in samples.items() if k != "population"}
    ess = min(
        float(np.min(np.asarray(values)))
        for values in az.ess(az.convert_to_dataset(kept)).data_vars.values()
    )
    evals = float(np.sum(mcmc.get_extra_fields()[field]))
    draws = CHAINS * num_samples
    spread = kept["spread"]
    table.add(
        name,
        ess / draws,
        1000 * ess / evals,
        ess / seconds,
        seconds,
        with_error(spread.mean(), spread.std()),
    )


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--draws", type=int, default=1000)
    args = parser.parse_args()
    draws = 50 if args.quick else args.draws
    training = {"num_steps": 250} if args.quick else {}
    first, second = example.simulate(jr.key(0), 8), example.simulate(jr.key(1), 12)
    yesterday = example.nuts(jr.key(2), first)
    density, _ = rtk.fit(
        jr.key(3),
        yesterday,
        sites=["mean", "spread"],
        progress_bar=False,
        **training,
    )
    prior = rtk.LearnedPrior(density)

    def today(y):
        sites = rtk.learned_sites("population", prior)
        example.machines(sites["mean"], sites["spread"], y)

    table = Table("one_mode", COLUMNS)
    data = jnp.asarray(second)
    measure(table, "NUTS", NUTS(today), data, draws, "num_steps")
    for name in QUICK if args.quick else EXCHANGES:
        kernel = rtk.RTKReplicaExchange(today, **EXCHANGES[name])
        measure(table, name, kernel, data, draws, "num_score_evals")


if __name__ == "__main__":
    main()
