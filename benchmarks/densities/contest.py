"""A density from samples: ours against normalising flows and a Gaussian mixture.

    python -m benchmarks.densities.contest          # about an hour on two cores
    python -m benchmarks.densities.contest --quick  # does it run: figures of no worth
    python -m benchmarks.densities.contest --targets wine rings

Mixtures of six correlated Gaussians and shapes in the plane (20,000 rows, 10,000 fresh ones
to judge by, modes of unequal weight), and three of scikit-learn's tables (a fifth held
out, three splits). All rivals see the same rows, keep a tenth of them back to stop or to
choose, and report the mean log density of the fresh rows: nats, on the scale of
standardised columns for the tables.

Ours: ``rtk.fit`` with its defaults. Its integral is learned, so it is estimated (importance
sampling from the mixture that the fit starts from, 100,000 draws; ``efficiency`` is the
share of them that count) and taken off. Rivals are normalised by construction. Mode
weights: of a rival's 50,000 draws, by the most probable mode of the truth; of ours by the
same importance sample. ``us`` is the time of one log density with its gradient, in a batch
of 512.
"""

import argparse
import dataclasses
import time
from functools import partial
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from scipy.special import logsumexp
from sklearn import datasets

import numpyro_rtk as rtk
from benchmarks.densities import truths
from benchmarks.shared.learners import FLOWS, Learned, flow, mixture
from benchmarks.shared.tables import Table

NUM_ROWS, NUM_FRESH, NUM_DRAWS = 20_000, 10_000, 50_000
TABLE_JITTER = 0.05  # of a column's sd: else ties would have any density one likes
COLUMNS = (
    "target",
    "density",
    "log density",
    "se",
    "truth",
    "sd of error",
    "weights TV",
    "log integral",
    "efficiency",
    "us",
    "s",
    "note",
)


class Task(NamedTuple):
    """Rows to learn from, fresh ones, and the law of both where it is known."""

    rows: np.ndarray
    fresh: np.ndarray
    truth: object | None = None


def drawn_task(make_truth, num_rows: int) -> Task:
    rng = np.random.default_rng(0)
    truth = make_truth(rng)
    return Task(truth.draw(rng, num_rows)[0], truth.draw(rng, NUM_FRESH)[0], truth)


def table_task(load, seed: int) -> Task:
    rows = load()
    rng = np.random.default_rng(seed)
    rows = rng.permutation((rows - rows.mean(axis=0)) / rows.std(axis=0))
    rows = rows + TABLE_JITTER * rng.normal(size=rows.shape)
    num = len(rows) // 5
    return Task(rows[num:], rows[:num])


def diabetes() -> np.ndarray:
    """Without the sex, which is no real number."""
    return np.delete(datasets.load_diabetes().data, 1, axis=1)


TARGETS = {
    **{
        name: partial(drawn_task, make_truth)
        for name, make_truth in {
            **{
                f"mixture, {dim} d": partial(truths.Mixture, dim=dim, floor=1.0)
                for dim in (2, 10, 50)
            },
            "two moons": lambda rng: truths.two_moons(),
            "rings": lambda rng: truths.rings(),
            "pinwheel": lambda rng: truths.pinwheel(),
        }.items()
    },
    **{
        f"{name}, split {seed}": lambda _, load=load, seed=seed: table_task(load, seed)
        for name, load in {
            "wine": lambda: datasets.load_wine().data,
            "diabetes": diabetes,
            "breast cancer": lambda: datasets.load_breast_cancer().data,
        }.items()
        for seed in range(3)
    },
}


QUICK = ("mixture, 2 d", "two moons", "wine, split 0")  # targets


class Energy(NamedTuple):
    """Ours, with what importance sampling says of it."""

    learned: Learned
    log_integral: tuple[float, float]
    efficiency: float
    proposals: np.ndarray
    weights: np.ndarray


def energy(rows: np.ndarray, seed: int, **options) -> Energy:
    model, history = rtk.fit(jr.key(seed), rows, progress_bar=False, **options)
    evaluate = in_chunks(model)
    base = dataclasses.replace(model, uses_network=False)
    x = np.asarray(model.sample_base(jr.key(seed + 7), (2 * NUM_DRAWS,)))
    log_weights = evaluate(x) - in_chunks(base)(x)
    log_mean = logsumexp(log_weights) - np.log(len(x))
    weights = np.exp(log_weights - log_mean)
    note = f"best of {history['step'][-1]} steps: {history['best_step']}"
    learned = Learned(evaluate, None, lambda x: model.log_density(x, 0.0), note)
    return Energy(
        learned,
        (log_mean, weights.std() / np.sqrt(len(x))),
        1.0 / np.mean(weights**2),
        x,
        weights,
    )


def in_chunks(model, size: int = 10_000):
    """Its log density of rows ``(n, dim)``, ``(n,)`` in float64."""
    log_density = eqx.filter_jit(model.log_density)

    def evaluate(x: np.ndarray) -> np.ndarray:
        parts = [x[i : i + size] for i in range(0, len(x), size)]
        values = [log_density(jnp.asarray(part, jnp.float32), 0.0) for part in parts]
        return np.concatenate([np.asarray(value, float) for value in values])

    return evaluate


def microseconds(evaluate, dim: int, batch: int = 512) -> float:
    """Of one log density with its gradient; the best of 20."""
    run = jax.jit(jax.vmap(jax.value_and_grad(evaluate)))
    x = jr.normal(jr.key(0), (batch, dim))
    jax.block_until_ready(run(x))
    seconds = []
    for _ in range(20):
        start = time.perf_counter()
        jax.block_until_ready(run(x))
        seconds.append(time.perf_counter() - start)
    return 1e6 * min(seconds) / batch


def weights_tv(truth, x: np.ndarray, weights: np.ndarray | None = None) -> float:
    num = len(truth.weights)
    shares = np.bincount(truth.assign(x), weights, minlength=num)
    # of the truth by the same assignment, from as many draws
    exact = np.bincount(truth.assign(truth.draw(np.random.default_rng(5), len(x))[0]))
    return 0.5 * np.abs(shares / shares.sum() - exact / exact.sum()).sum()


def judge(
    table: Table, name: str, who: str, task: Task, fitted, seconds: float
) -> None:
    nan = float("nan")
    learned = fitted.learned if isinstance(fitted, Energy) else fitted
    log_density = learned.log_density(task.fresh)
    integral, efficiency, tv, error_sd, true = "0", nan, nan, nan, nan
    if isinstance(fitted, Energy):
        value, error = fitted.log_integral
        integral, efficiency = f"{value:+.3f} +- {error:.3f}", fitted.efficiency
        log_density = log_density - value
    if task.truth is not None:
        exact = task.truth.log_density(task.fresh)
        true, error_sd = exact.mean(), (log_density - exact).std()
        if isinstance(fitted, Energy):
            tv = weights_tv(task.truth, fitted.proposals, fitted.weights)
        else:
            tv = weights_tv(task.truth, learned.sample(NUM_DRAWS))
    cost = nan
    if learned.evaluate is not None:
        cost = microseconds(learned.evaluate, task.rows.shape[1])
    table.add(
        name,
        who,
        f"{log_density.mean():.3f}",
        f"{log_density.std() / len(log_density) ** 0.5:.3f}",
        true,
        error_sd,
        tv,
        integral,
        efficiency,
        cost,
        f"{seconds:.0f}",
        learned.note,
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--targets", nargs="+", help="beginnings; all by default")
    parser.add_argument("--only", nargs="+", help="some of the densities, by name")
    parser.add_argument("--quick", action="store_true")
    args = parser.parse_args()
    beginnings = args.targets or (QUICK if args.quick else [""])
    rates = {"learning_rates": (2e-3,), "max_epochs": 3} if args.quick else {}
    few = {"components": (1, 6), "floors": (1e-6,)} if args.quick else {}
    rivals = {
        "numpyro_rtk": lambda rows: energy(
            rows, 0, **({"num_steps": 250} if args.quick else {})
        ),
        "Gaussian mixture by EM": lambda rows: mixture(rows, 0, **few),
        **{
            name: lambda rows, name=name: flow(name, rows, 0, **rates) for name in FLOWS
        },
    }
    table = Table("densities", COLUMNS, more=("flowjax", "scikit-learn"))
    for name, make in TARGETS.items():
        if not name.startswith(tuple(beginnings)):
            continue
        task = make(2000 if args.quick else NUM_ROWS)
        for who, run in rivals.items():
            if args.only and who not in args.only:
                continue
            start = time.perf_counter()
            fitted = run(task.rows)
            judge(table, name, who, task, fitted, time.perf_counter() - start)
            jax.clear_caches()


if __name__ == "__main__":
    main()
