"""A user's first run, and the next ones on new data: compilation included.

    python -m benchmarks.cost.first_run
    python -m benchmarks.cost.first_run --quick  # does it run

A mixture as prior and one measurement, 4 vectorised chains, 200 draws of warm-up and 1,000
kept, ``jit_model_args=True``; one ``MCMC`` object a kernel, three runs, each on new data of
the same shape. All kernels in one process without a compilation cache on disk, so read it
as ratios to NUTS. CPU seconds of the compiler's threads are in the third column.
"""

import argparse
import os
import time

os.environ["JAX_COMPILATION_CACHE_DIR"] = ""

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import numpyro
import numpyro.distributions as dist
from numpyro.infer import NUTS

import numpyro_rtk as rtk
from benchmarks.shared.runs import vectorised
from benchmarks.shared.tables import Table

PRIOR = rtk.GaussianMixture(
    [0.3, 0.7], [[-2.0, 0.0], [2.0, 1.0]], [0.3 * np.eye(2)] * 2
)
KERNELS = {
    "NUTS": NUTS,
    "RTKReplicaExchange": rtk.RTKReplicaExchange,
    "RTKMALA": rtk.RTKMALA,
    "RTKULD": rtk.RTKULD,
    "RTKParticleGibbs": rtk.RTKParticleGibbs,
}
RUNS, CHAINS = 3, 4


def model(y):
    x = numpyro.sample("x", rtk.LearnedPrior(PRIOR))
    numpyro.sample("y", dist.Normal(x[1], 0.5), obs=y)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true")
    num_warmup, num_samples = (20, 20) if parser.parse_args().quick else (200, 1000)
    # what every process pays once
    jax.block_until_ready(jax.jit(jr.normal)(jr.key(0)))
    table = Table("first_run", ("kernel", "run", "CPU s", "s"))
    for name, kernel in KERNELS.items():
        mcmc = vectorised(
            kernel(model), num_warmup, num_samples, CHAINS, jit_model_args=True
        )
        for i in range(RUNS):
            y = jnp.asarray(np.random.default_rng(i).normal(size=5), jnp.float32)
            start, cpu = time.perf_counter(), time.process_time()
            mcmc.run(jr.key(i), y)
            jax.block_until_ready(mcmc.get_samples())
            spent = time.process_time() - cpu, time.perf_counter() - start
            table.add(name, str(i + 1), *spent)


if __name__ == "__main__":
    main()
