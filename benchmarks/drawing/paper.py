"""The toy experiments of the RTK paper again, with exact scores and every method tuned.

    python -m benchmarks.drawing.paper          # 10,000 draws
    python -m benchmarks.drawing.paper --quick  # 2,000 draws, fewer budgets and tunings

Of the paper (Huang et al., NeurIPS 2024, arXiv 2405.16387): the circle of 12 equal
Gaussians of variance .007 in 10 dimensions, the spiral, the chessboard; DDPM, annealed
Langevin, RTK-ULA, -ULD, -MALA and its score-only estimate ("Taylor"), in 5 uniform
segments; marginal accuracy and a Wasserstein distance against evaluations. Ours: the
circle's unequal weights (and the chessboard's), trapezoid and Simpson acceptance, the
error of the mode weights, the energy bias, and the package's defaults beside it all.

Tuning: at every number of evaluations each method takes the setting of the least
geometric mean of the four measures (each no less than its i.i.d. floor), on 2,000 other
draws. DDPM: variance and time grid; annealed Langevin: levels, steps per level, step
size; RTK in the paper's setting: step size. The package's defaults are not chosen so:
they adapt in their warm-up.
"""

import argparse
import time
from collections.abc import Callable, Iterator
from functools import partial
from itertools import product
from typing import NamedTuple

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np

from benchmarks.drawing import published
from benchmarks.drawing.contest import rtk_mala
from benchmarks.drawing.metrics import Reference
from benchmarks.drawing.shapes import chessboard, circle, spiral, unequal_circle
from benchmarks.shared import figures, solvers
from benchmarks.shared.runs import draw
from benchmarks.shared.solvers import random_key, solve
from benchmarks.shared.tables import Table
from benchmarks.shared.targets import Target

COLUMNS = (
    "target",
    "method",
    "evaluations",
    "marginal accuracy",
    "W2 / floor",
    "weight TV",
    "energy bias",
    "setting",
)
MEASURES = {
    "marginal accuracy": "linear",
    "W2 / floor": "log",
    "weight TV": "log",
    "energy bias": "symlog",
}
FLOOR, DEFAULT = "i.i.d. draws", "rtk.RTKMALA, default"
FIGURE_BUDGET = 40


class Size(NamedTuple):
    """What ``--quick`` makes smaller; ``grids`` are names in ``solvers.grids``."""

    draws: int
    tuning_draws: int
    budgets: tuple[int, ...]
    default_budgets: tuple[int, ...]
    step_sizes: tuple[float, ...]
    langevin_steps: tuple[float, ...]
    grids: tuple[str, ...]
    reference: int


FULL = Size(
    draws=10_000,
    tuning_draws=2000,
    budgets=(10, 20, 40, 80, 160),
    default_budgets=(10, 20, 40),
    step_sizes=(0.1, 0.2, 0.35, 0.5, 0.7, 1.0, 1.4, 2.0),
    langevin_steps=(0.05, 0.1, 0.2, 0.35, 0.5, 0.8, 1.2),
    grids=tuple(solvers.grids(10)),
    reference=200_000,
)
QUICK = Size(
    draws=2000,
    tuning_draws=2000,
    budgets=(10, 20, 40),
    default_budgets=(40,),
    step_sizes=(0.2, 0.5, 1.0, 1.4),
    langevin_steps=(0.2, 0.5, 0.8),
    grids=(
        "uniform, T 3",
        "angle, T 3, least noise 0.1",
        "log-SNR, T 3, least noise 0.05",
        "Karras, T 3, least noise 0.05",
    ),
    reference=50_000,
)


class Candidate(NamedTuple):
    """One setting of a method: what it costs, and ``draw(key, n) -> (n, dim)``."""

    setting: str
    evals: int
    draw: Callable[[jax.Array, int], jax.Array]


Method = Callable[[Target, int, Size], Iterator[Candidate]]


def ddpm(target: Target, budget: int, size: Size) -> Iterator[Candidate]:
    """Ancestral sampling, one evaluation a segment."""
    grids = solvers.grids(budget)
    for name, variance in product(size.grids, ("small", "large")):
        times, options = jnp.asarray(grids[name]), {"variance": variance}
        draw = partial(solve, target.density, solvers.ddpm, times, options)
        yield Candidate(f"{variance} variance, {name}", budget, draw)


def annealed_langevin(target: Target, budget: int, size: Size) -> Iterator[Candidate]:
    """Langevin steps at every level, the last evaluation to denoise."""
    names = [name for name in size.grids if name.startswith(("angle", "log-SNR"))]
    names = [name for name in names if "T 3" in name]
    for num_steps, name, step in product((1, 4), names, size.langevin_steps):
        num_levels = (budget - 1) // num_steps
        times = jnp.asarray(solvers.grids(num_levels)[name])
        options = {"step_size": jnp.asarray(step), "num_steps": num_steps}
        draw = partial(solve, target.density, solvers.annealed_langevin, times, options)
        setting = f"{num_levels} x {num_steps}, step {step}, {name}"
        yield Candidate(setting, num_levels * num_steps + 1, draw)


def rtk_as_published(name: str) -> Method:
    """RTK in the paper's setting with one of its inner samplers."""
    inner = published.SAMPLERS[name]

    def method(target: Target, budget: int, size: Size) -> Iterator[Candidate]:
        num_steps = published.steps_within(inner, budget)
        if num_steps < 1:
            return
        plan = published.plan_for(target.density, random_key(0))
        most_steps = published.steps_within(inner, max(size.budgets))
        for step_size in size.step_sizes:
            draw = partial(
                published.draw,
                target.density,
                plan,
                inner,
                jnp.asarray(num_steps),
                jnp.asarray(step_size),
                most_steps=most_steps,
            )
            setting = f"{num_steps} a segment, step {step_size}"
            yield Candidate(setting, published.evals(inner, num_steps), draw)

    return method


METHODS: dict[str, Method] = {
    "DDPM": ddpm,
    "annealed Langevin": annealed_langevin,
    **{name: rtk_as_published(name) for name in published.SAMPLERS},
}


def tuning_error(reference: Reference, x: np.ndarray) -> float:
    """Sum of the logs of the four measures, none below what i.i.d. draws have."""
    if not np.isfinite(x).all():
        return np.inf
    parts = lambda raw: np.array(
        [
            raw["sliced_w2"],
            1.0 - raw["marginal_accuracy"],
            raw["weight_tv"],
            abs(raw["energy_bias"]),
        ]
    )
    floors = parts(reference.floor)
    floors[-1] = reference.n**-0.5  # standard error of a mean, in standard deviations
    return float(np.log(np.maximum(parts(reference.raw(x)), floors)).sum())


def tuned(candidates: list[Candidate], reference: Reference) -> Candidate:
    """The best on draws of its own, as many as ``reference`` is for."""
    draws = (np.asarray(c.draw(random_key(1), reference.n)) for c in candidates)
    return candidates[int(np.argmin([tuning_error(reference, x) for x in draws]))]


def in_parts(candidate: Candidate, size: Size) -> np.ndarray:
    """All draws, in parts of the tuning's size: the same compiled program."""
    keys = jr.split(random_key(2), size.draws // size.tuning_draws)
    return np.concatenate([candidate.draw(key, size.tuning_draws) for key in keys])


def by_package(target: Target, budget: int, n: int) -> tuple[np.ndarray, int, str]:
    """The package's kernel with its defaults, as a user runs it."""
    kernel = rtk_mala(target.density, budget)
    x, fields = draw(kernel, n, random_key(2))
    return x, int(fields["num_score_evals"][0]), "adapted"


def draws_of(target: Target, size: Size):
    """``(method, budget, draws, evaluations, setting)``, one method after another."""
    tuning = Reference(
        target, size.tuning_draws, sets=8, size=size.reference, num_directions=50
    )
    for name, method in METHODS.items():
        for budget in size.budgets:
            candidates = list(method(target, budget, size))
            if candidates:
                best = tuned(candidates, tuning)
                yield name, budget, in_parts(best, size), best.evals, best.setting
    for budget in size.default_budgets:
        yield DEFAULT, budget, *by_package(target, budget, size.draws)


def run(quick: bool) -> None:
    """Table ``paper``, figures ``paper_curves`` and ``paper_histograms``."""
    size, start = QUICK if quick else FULL, time.time()
    unequal = unequal_circle()._replace(name="unequal circle, 10 d")
    table, floors, clouds = Table("paper", COLUMNS), {}, {}
    for target in (circle(), unequal, spiral(), chessboard()):
        reference = Reference(target, size.draws, size=size.reference)
        floor = reference.floor
        w2 = f"W2 {floor['sliced_w2']:.4f}"
        best = (floor["marginal_accuracy"], 1.0, floor["weight_tv"], 0.0)
        table.add(target.name, FLOOR, "-", *best, w2)
        floors[target.name] = dict(zip(MEASURES, best, strict=True))
        clouds[target.name] = {"truth": reference.sample[: size.draws]}
        for name, budget, x, evals, setting in draws_of(target, size):
            s = reference.score(x)
            table.add(
                target.name,
                name,
                evals,
                floor["marginal_accuracy"] - s["marginal_loss"],
                s["sliced_w2_ratio"],
                s["weight_tv"],
                s["energy_bias"],
                setting,
            )
            if budget == FIGURE_BUDGET:
                clouds[target.name][name] = x
    rows = [row for row in table.records if row["method"] != FLOOR]
    figures.curves(
        "paper_curves", rows, "target", "method", "evaluations", MEASURES, floors
    )
    figures.histograms("paper_histograms", clouds)
    print(f"{time.time() - start:.0f} s")


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="a reduced form")
    run(parser.parse_args().quick)


if __name__ == "__main__":
    main()
