"""A model whose learned part is weak and whose posterior has one mode: the cost of safety.

    python benchmarks/weak_learned.py

The hierarchical model of ``examples/yesterdays_posterior.py``: a learned prior on two
parameters, twelve ordinary sites. Effective sample size (the worst of all sites) per draw,
per evaluation and per second of NUTS, of ``RTKReplicaExchange``, and of the same with plain
swaps, all in one process, compilation left out by timing a second run.
"""

import argparse
import sys
import time
from pathlib import Path

import arviz as az
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import numpyro
from numpyro.infer import MCMC, NUTS

import numpyro_rtk as rtk

sys.path.insert(0, str(Path(__file__).parent.parent / "examples"))
import yesterdays_posterior as example

CHAINS = 8


def measure(name, kernel, data, num_samples: int, field: str) -> None:
    mcmc = MCMC(
        kernel,
        num_warmup=300,
        num_samples=num_samples,
        num_chains=CHAINS,
        chain_method="vectorized",
        progress_bar=False,
        jit_model_args=True,
    )
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
    print(
        f"| {name} | {ess / draws:.2f} | {1000 * ess / evals:.1f} | {ess / seconds:.0f} | "
        f"{seconds:.1f} s | {spread.mean():.3f} +- {spread.std():.3f} |",
        flush=True,
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--draws", type=int, default=1000)
    args = parser.parse_args()
    print(f"jax {jax.__version__}, numpyro {numpyro.__version__}, {args}")
    first, second = (
        example.simulate(jr.key(0), 8),
        example.simulate(jr.key(1), 12),
    )
    yesterday = example.nuts(jr.key(2), first)
    model_, _ = rtk.fit(
        jr.key(3), yesterday, sites=["mean", "spread"], progress_bar=False
    )
    prior = rtk.LearnedPrior(model_)

    def today(y):
        sites = rtk.learned_sites("population", prior)
        example.machines(sites["mean"], sites["spread"], y)

    print("| kernel | ESS/draw | per 1,000 evaluations | per second | time | spread |")
    print("|---|---|---|---|---|---|")
    data = jnp.asarray(second)
    measure("NUTS", NUTS(today), data, args.draws, "num_steps")
    for name, options in (
        ("RTKReplicaExchange", {}),
        ("the same, 6 levels, 1 sweep", {"num_levels": 6, "num_sweeps": 1}),
        ("plain swaps, 14 levels", {"exchange": "swap"}),
    ):
        kernel = rtk.RTKReplicaExchange(today, **options)
        measure(name, kernel, data, args.draws, "num_score_evals")


if __name__ == "__main__":
    main()
