"""What a draw costs beyond its network evaluations.

    python benchmarks/cost.py

Wall time of ``MCMC(kernel, chain_method="vectorized", progress_bar=False).run`` over that
of the same number of bare, batched, jitted network evaluations (log density and score
together) in one ``lax.scan``, at the batch sizes that the kernel uses. NumPyro's driver
compiles its loop anew in every ``run``, so the time of a draw is taken from two runs of
different length, whose difference holds no compilation.
"""

import argparse
import tempfile
import time

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import numpyro
import numpyro.distributions as dist
from numpyro.infer import MCMC

import numpyro_rtk as rtk


def bare_seconds(density, batch: int, count: int) -> float:
    """Seconds of ``count`` evaluations of a batch, one after the other; best of 3."""
    shape = (batch, *density.event_shape)

    @jax.jit
    def run(x):
        def body(x, t):
            value, score = jax.vmap(lambda y: density.log_density_and_score(y, t))(x)
            return x + 1e-6 * score, value[0]

        return jax.lax.scan(body, x, jnp.linspace(0.0, 3.0, count))

    x = jr.normal(jr.key(0), shape)
    jax.block_until_ready(run(x))
    return min(_timed(lambda: jax.block_until_ready(run(x))) for _ in range(3))


def mcmc_seconds(kernel, num_chains: int, num_samples: int, *args) -> tuple[float, int]:
    """Seconds of ``num_samples`` compiled draws, and evaluations a draw; median of 3."""
    mcmc = MCMC(
        kernel,
        num_warmup=5,
        num_samples=num_samples,
        num_chains=num_chains,
        chain_method="vectorized",
        progress_bar=False,
    )
    mcmc.warmup(jr.key(0), *args)

    def run(length):
        mcmc.num_samples = length
        mcmc.run(jr.key(1), *args)
        jax.block_until_ready(mcmc.last_state)

    def difference():
        return _timed(lambda: run(num_samples + 1)) - _timed(lambda: run(1))

    difference()  # fills the compilation cache
    seconds = float(np.median([difference() for _ in range(3)]))
    return seconds, int(mcmc.get_extra_fields()["num_score_evals"][0])


def _timed(function) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--chains", type=int, default=64)
    parser.add_argument("--draws", type=int, default=200)
    parser.add_argument("--candidates", type=int, default=4)
    parser.add_argument("--dims", type=int, nargs="+", default=[12, 64])
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        jax.config.update("jax_compilation_cache_dir", folder)
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
        measure(args)


def measure(args) -> None:
    print(f"jax {jax.__version__}, numpyro {numpyro.__version__}, {args}")
    for dim in args.dims:
        samples = jr.normal(jr.key(0), (2000, dim)) ** 3
        density, _ = rtk.fit(jr.key(1), samples, num_steps=50, progress_bar=False)
        chains, draws, width = args.chains, args.draws, args.candidates

        seconds, evals = mcmc_seconds(rtk.RTKMALA(score=density), chains, draws)
        bare = bare_seconds(density, chains, evals * draws)
        print(
            f"d = {dim}, score=: {seconds:.2f} s / {bare:.2f} s = {seconds / bare:.2f}"
        )

        design = np.random.default_rng(0).normal(size=(dim // 4, dim)) / dim**0.5

        def model(y, density=density, design=design):
            x = numpyro.sample("x", rtk.LearnedPrior(density))
            numpyro.sample("y", dist.Normal(design @ x, 1.0).to_event(1), obs=y)

        kernel = rtk.RTKMALA(model, num_candidates=width)
        seconds, evals = mcmc_seconds(kernel, chains, draws, jnp.zeros(dim // 4))
        one_run = evals // (width + 1) * draws
        bare = bare_seconds(density, chains, one_run) + bare_seconds(
            density, chains * width, one_run
        )
        print(
            f"d = {dim}, model=: {seconds:.2f} s / {bare:.2f} s = {seconds / bare:.2f}"
        )

        # all levels are evaluated in one batch
        kernel, few = rtk.RTKReplicaExchange(model), max(draws // 4, 10)
        few_chains = max(chains // 4, 1)
        seconds, evals = mcmc_seconds(kernel, few_chains, few, jnp.zeros(dim // 4))
        width = kernel.num_levels
        bare = bare_seconds(density, few_chains * width, evals * few // width)
        print(
            f"d = {dim}, exchange: {seconds:.2f} s / {bare:.2f} s = {seconds / bare:.2f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
