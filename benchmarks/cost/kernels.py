"""What a draw costs beyond its network evaluations.

    python -m benchmarks.cost.kernels
    python -m benchmarks.cost.kernels --quick  # does it run: figures of no worth

Wall time of draws after warm-up (a compiled loop over ``kernel.sample``, all chains
vectorised) over that of the same number of bare, batched, jitted network evaluations (log
density and score together) in one ``lax.scan``, at the batch sizes that the kernel uses.
Both are timed in turns, so that a busy machine slows both; printed are the ratio of the
shortest times and the median of the ratios of neighbours. ``RTKMALA`` has 64 chains
unless ``--chains`` says else, ``RTKReplicaExchange`` 16, ``RTKParticleGibbs`` 4.
"""

import argparse
import dataclasses
import time

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import numpyro
import numpyro.distributions as dist

import numpyro_rtk as rtk
from benchmarks.shared.tables import Table

COLUMNS = ("d", "kernel", "s", "bare s", "ratio", "median ratio")


def bare_runner(density, batches: list[tuple[int, int]], one_time: bool = True):
    """A compiled function without arguments: ``count`` evaluations of each batch.

    With ``one_time`` a batch is at one noise level, as in an annealed run; else each of
    its rows is at its own, as in a sweep of the exchange.
    """

    @jax.jit
    def run(starts):
        evaluate = jax.vmap(
            density.log_density_and_score, in_axes=(0, None if one_time else 0)
        )

        def body(x, t):
            value, score = evaluate(x, t if one_time else t + spread[: len(x)])
            return x + 1e-6 * score, value[0]

        times = [jnp.linspace(0.0, 2.0, count) for _, count in batches]
        return [jax.lax.scan(body, x, t) for x, t in zip(starts, times, strict=True)]

    shape = density.event_shape
    spread = jnp.linspace(0.0, 1.0, max(batch for batch, _ in batches))
    starts = [jr.normal(jr.key(0), (batch, *shape)) for batch, _ in batches]
    compiled = run.lower(starts).compile()
    return lambda: compiled(starts)


def kernel_runner(kernel, num_chains: int, num_draws: int, *args):
    """A compiled function without arguments that draws; and evaluations a draw."""
    num_warmup = 5
    keys = jr.split(jr.key(3), num_chains)
    state = kernel.init(keys, num_warmup, None, model_args=args, model_kwargs={})

    def loop(state, length):
        return jax.lax.fori_loop(
            0, length, lambda _, s: kernel.sample(s, args, {}), state
        )

    loop = jax.jit(loop)  # the length is a value: one program for warm-up and draws
    state = jax.block_until_ready(loop(state, num_warmup + 1))
    evals = int(np.ravel(state.num_score_evals)[0])
    return (lambda: loop(state, num_draws)), evals


def ratios(run, bare, repeats: int) -> tuple[float, float, float]:
    """Shortest seconds of both, and the median of their ratios."""
    run(), bare()
    times = np.array([[_timed(run), _timed(bare)] for _ in range(repeats)])
    return *times.min(axis=0), float(np.median(times[:, 0] / times[:, 1]))


def _timed(function) -> float:
    start = time.perf_counter()
    jax.block_until_ready(function())
    return time.perf_counter() - start


def measure(table: Table, dim: int, args) -> None:
    samples = jr.normal(jr.key(0), (2000, dim)) ** 3
    density, _ = rtk.fit(jr.key(1), samples, num_steps=50, progress_bar=False)
    density = dataclasses.replace(density, uses_network=True)  # trained or not
    chains, draws = args.chains, args.draws
    design = np.random.default_rng(0).normal(size=(dim // 4, dim)) / dim**0.5

    def model(y):
        x = numpyro.sample("x", rtk.LearnedPrior(density))
        numpyro.sample("y", dist.Normal(design @ x, 1.0).to_event(1), obs=y)

    def report(name, kernel, chains, batches, *data):
        run, evals = kernel_runner(kernel, chains, draws, *data)
        bare = bare_runner(density, batches(kernel, evals), batches is not levels)
        fastest, bare_fastest, median = ratios(run, bare, args.repeats)
        table.add(dim, name, fastest, bare_fastest, fastest / bare_fastest, median)

    def annealed(kernel, evals):
        return [(chains, evals * draws)]

    def candidates(kernel, evals):  # one run upwards, the candidates' runs downwards
        one_run = evals // (args.candidates + 1) * draws
        return [(chains, one_run), (chains * args.candidates, one_run)]

    def levels(kernel, evals):  # all levels are evaluated in one batch
        width = kernel.num_levels
        return [(args.exchange_chains * width, evals * draws // width)]

    def particles(kernel, evals):  # all chains' particles are, at one level
        width = kernel.num_particles
        return [(args.particle_chains * width, evals * draws // width)]

    y = jnp.zeros(dim // 4)
    report("RTKMALA(score=...)", rtk.RTKMALA(score=density), chains, annealed)
    kernel = rtk.RTKMALA(model, num_candidates=args.candidates)
    report("RTKMALA(model)", kernel, chains, candidates, y)
    few = args.exchange_chains
    exchange = rtk.RTKReplicaExchange
    report("RTKReplicaExchange(score=...)", exchange(score=density), few, levels)
    report("RTKReplicaExchange(model)", exchange(model), few, levels, y)
    kernel = rtk.RTKParticleGibbs(model)
    report("RTKParticleGibbs(model)", kernel, args.particle_chains, particles, y)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--chains", type=int, default=64)
    parser.add_argument("--exchange-chains", type=int, default=16)
    parser.add_argument("--particle-chains", type=int, default=4)
    parser.add_argument("--draws", type=int, default=50)
    parser.add_argument("--candidates", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--dims", type=int, nargs="+", default=[12, 64])
    args = parser.parse_args()
    if args.quick:
        args.dims, args.draws, args.repeats = [12], 5, 2
    table = Table("cost_kernels", COLUMNS)
    for dim in args.dims:
        measure(table, dim, args)


if __name__ == "__main__":
    main()
