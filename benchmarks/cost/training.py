"""Training steps per second of ``rtk.fit`` against a bare equinox + optax loop.

    python -m benchmarks.cost.training
    python -m benchmarks.cost.training --quick  # does it run: figures of no worth

The bare loop is what one would write by hand: a step under ``eqx.filter_jit``, called from
Python, that draws the same minibatch, noise and noise levels and takes the same optimiser's
step on the same loss and network. It keeps no average of the weights and validates nothing;
``rtk.fit`` does both, and its time is that of its own ``history``, validation and all, from
the first evaluation (before it lies the compilation) to the last. The two take turns, and
the ratio is the median over them: other work on the machine spreads the single ones.
"""

import argparse
import dataclasses
import time

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax

import numpyro_rtk as rtk
from benchmarks.shared.tables import Table
from numpyro_rtk.training.loop import draw_noise_levels
from numpyro_rtk.training.losses import dual_score_matching

WARMUP = 0.05
COLUMNS = ("d", "rtk.fit steps / s", "bare steps / s", "ratio", "least", "largest")
LEAST_STEPS = 500  # two entries of a history, one every 250 steps


def bare_loop(model, z, key, num_steps: int, batch_size: int, learning_rate: float):
    """A function that takes ``n`` more steps and gives the seconds they took."""
    rise = round(WARMUP * num_steps)
    optimiser = optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.adam(
            optax.warmup_cosine_decay_schedule(0.0, learning_rate, rise, num_steps)
        ),
    )

    @eqx.filter_jit
    def step(network, opt_state, key, z):
        key_rows, key_noise, key_level = jr.split(key, 3)
        z0 = z[jr.randint(key_rows, (batch_size,), 0, z.shape[0])]
        e = jr.normal(key_noise, z0.shape)
        log_r = draw_noise_levels(key_level, batch_size, model.noise_range)

        def mean_loss(network):
            whole = eqx.tree_at(lambda model: model.network, model, network)
            loss = jax.vmap(lambda *point: dual_score_matching(whole, *point))
            return jnp.mean(loss(z0, e, log_r))

        loss, grads = eqx.filter_value_and_grad(mean_loss)(network)
        updates, opt_state = optimiser.update(grads, opt_state)
        return eqx.apply_updates(network, updates), opt_state, loss

    network = model.network
    opt_state = optimiser.init(eqx.filter(network, eqx.is_inexact_array))
    network, opt_state, loss = step(network, opt_state, key, z)  # compiles
    done = 0

    def run(num: int) -> float:
        nonlocal network, opt_state, loss, done
        start = time.perf_counter()
        for _ in range(num):
            done += 1
            network, opt_state, loss = step(
                network, opt_state, jr.fold_in(key, done), z
            )
        loss.block_until_ready()
        return time.perf_counter() - start

    return run


def ours(key, samples, network, options) -> tuple[float, int]:
    """Seconds, and the steps they are for."""
    _, history = rtk.fit(key, samples, network=network, progress_bar=False, **options)
    seconds = history["wall_time"][-1] - history["wall_time"][0]
    return float(seconds), int(history["step"][-1] - history["step"][0])


def measure(table: Table, dim: int, args) -> None:
    samples = np.random.default_rng(0).normal(size=(args.rows, dim)) ** 3
    network = rtk.EnergyMLP(dim, key=jr.key(1))
    options = {
        "num_steps": args.steps,
        "batch_size": args.batch_size,
        "learning_rate": 1e-3,
        # the loop is timed, not the search for a base
        "training": rtk.Training(num_components=1, patience=None),
    }
    # one step: the standardisation and the base that both train with
    model, _ = rtk.fit(
        jr.key(2),
        samples,
        network=network,
        progress_bar=False,
        **{**options, "num_steps": 1},
    )
    # after one step `fit` leaves the network out
    model = dataclasses.replace(model, network=network, uses_network=True)
    z = jnp.asarray((samples - samples.mean(0)) / samples.std(0), jnp.float32)
    run = bare_loop(
        model, z, jr.key(3), args.steps * (args.repeats + 1), args.batch_size, 1e-3
    )
    ours(jr.key(2), samples, network, options)
    rates = []
    for _ in range(args.repeats):
        seconds, num = ours(jr.key(2), samples, network, options)
        rates.append((num / seconds, num / run(num)))
    fit, bare = np.median(rates, axis=0)
    ratios = [f / b for f, b in rates]
    table.add(dim, fit, bare, np.median(ratios), min(ratios), max(ratios))


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--dims", type=int, nargs="+", default=[2, 10, 50])
    parser.add_argument("--rows", type=int, default=20_000)
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--batch-size", type=int, default=512)
    parser.add_argument("--repeats", type=int, default=8)
    args = parser.parse_args()
    if args.quick:
        args.dims, args.batch_size, args.repeats = [2], 64, 1
    if args.steps < LEAST_STEPS:
        parser.error(
            f"--steps must be at least {LEAST_STEPS}, for two entries of the history "
            f"that the rate is taken from; got {args.steps}"
        )
    table = Table("training", COLUMNS, more=("optax",))
    for dim in args.dims:
        measure(table, dim, args)


if __name__ == "__main__":
    main()
