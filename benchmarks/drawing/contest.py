"""Drawing from a diffusion model: RTK beside what a user would run, by evaluations.

    python -m benchmarks.drawing.contest                   # exact scores, 4 x 10,000 draws
    python -m benchmarks.drawing.contest --scores learned  # ours, 10,000 draws
    python -m benchmarks.drawing.contest --quick           # 2,000 draws, few grids

Three targets, 5 to 40 evaluations of the score a draw. RTK has one fixed setting for each
number of evaluations; it fits its predictor once, before the first draw, which costs about
16,000 evaluations. Each rival has its best grid for each target and number of evaluations:
the one with the least sliced W2 among up to 51, on other draws.

Sliced W2 and the total variation of the mode weights are over those of an i.i.d. sample of
the same size; the energy's bias is in standard deviations of the energy. ``learned`` scores
come from ``rtk.fit`` on 20,000 samples; the truth stays the reference, so that no method
can come to the floor. A network's evaluations are dear: there one set of draws, 17 of the
ladders, and no predictor-corrector, which is far behind on exact scores.
"""

import argparse
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np

import numpyro_rtk as rtk
from benchmarks.drawing.metrics import Reference
from benchmarks.drawing.shapes import chessboard, unequal_circle
from benchmarks.shared.figures import curves
from benchmarks.shared.runs import draw
from benchmarks.shared.solvers import SOLVERS, grids, num_segments, solve
from benchmarks.shared.tables import Table
from benchmarks.shared.targets import Target, correlated_mixture
from numpyro_rtk.density import has_energy

BUDGETS = (5, 10, 20, 40)
# segments and inner steps at level 0 (of two evaluations, one more for the first)
SETTINGS = {5: (5, 0), 10: (7, 1), 20: (13, 3), 40: (25, 7)}
NUM_TRAINING = 20_000
NUM_TUNING = 2000
COLUMNS = ("target", "scores", "method", "evals", "W2 / floor", "weights TV / floor")
COLUMNS = (*COLUMNS, "energy bias", "grid")


def rtk_mala(density: Any, evals: int, **options) -> rtk.RTKMALA:
    segments, steps = SETTINGS[evals]
    if not has_energy(density):
        options = {"inner": rtk.MALA(acceptance="simpson"), **options}
    return rtk.RTKMALA(
        score=density, num_segments=segments, num_steps=(steps,), **options
    )


def rtk_uld(density: Any, evals: int) -> rtk.RTKULD:
    segments, steps = SETTINGS[evals]
    return rtk.RTKULD(score=density, num_segments=segments, num_steps=(2 * steps,))


KERNELS: dict[str, Callable] = {"RTKMALA": rtk_mala, "RTKULD": rtk_uld}


def by_solver(
    density: Any, name: str, times: np.ndarray, key: jax.Array, n: int
) -> np.ndarray:
    """``n`` draws of a rival."""
    times = jnp.asarray(times, jnp.result_type(float))
    return np.asarray(solve(density, SOLVERS[name], times, {}, key, n))


def best_grid(density: Any, name: str, reference: Reference, candidates: dict) -> str:
    """The grid with the least sliced W2 on draws of its own."""

    def distance(grid):
        draws = by_solver(density, name, candidates[grid], jr.key(99), NUM_TUNING)
        usable = np.all(np.isfinite(draws))
        return reference.raw(draws)["sliced_w2"] if usable else np.inf

    return min(candidates, key=distance)


class Size(NamedTuple):
    """How much is drawn and tried; ``ladders`` by name, None for all."""

    draws: int
    sets: int
    ladders: tuple[str, ...] | None = None
    solvers: tuple[str, ...] = tuple(SOLVERS)
    budgets: tuple[int, ...] = BUDGETS

    def candidates(self, name: str, evals: int) -> dict[str, np.ndarray]:
        found = grids(num_segments(name, evals))
        return {ladder: found[ladder] for ladder in self.ladders or found}


LADDERS = tuple(name for name in grids(5) if "T 3" in name)
FEW_LADDERS = (
    "uniform, T 3",
    "log-SNR, T 3, least noise 0.1",
    "Karras, T 3, least noise 0.1",
)
FEW_SOLVERS = ("DDPM, large variance", "DPM-Solver++ (2M)", "EDM Heun")
PLAIN = tuple(name for name in SOLVERS if "corrector" not in name)
SIZES = {
    "exact": Size(10_000, 4),
    "learned": Size(10_000, 1, LADDERS, PLAIN),
    "quick": Size(2000, 1, FEW_LADDERS, FEW_SOLVERS, (10, 40)),
}


def learned(target: Target, quick: bool) -> dict[str, Any]:
    """Our energy, and a score network, from the same samples.

    ``fit`` may keep its mixture and drop the energy's network, where that is the better
    density; the score network starts from one Gaussian, so that it has all to learn.
    """
    samples = target.density.sample(jr.key(7), (NUM_TRAINING,))
    options: dict[str, Any] = {"num_steps": 300} if quick else {}
    options["progress_bar"] = False
    network = rtk.ScoreMLP(samples.shape[1:], key=jr.key(8))
    energy, _ = rtk.fit(jr.key(9), samples, **options)
    options["training"] = rtk.Training(num_components=1)
    score, _ = rtk.fit(jr.key(9), samples, network=network, **options)
    return {"our energy": energy, "our score network": score}


def mean_scores(reference: Reference, sets: list[np.ndarray]) -> tuple[float, ...]:
    """Means over the sets, of what the table shows."""
    rows = [reference.score(x) for x in sets]
    mean = {name: float(np.mean([row[name] for row in rows])) for name in rows[0]}
    tv = mean["weight_tv"] / reference.floor["weight_tv"]
    return mean["sliced_w2_ratio"], tv, mean["energy_bias"]


def compete(table: Table, target, reference, source, density, size: Size) -> None:
    """All methods on one density, at all budgets."""
    n, sets = reference.n, size.sets
    row = lambda method, evals, parts, grid: table.add(
        target.name, source, method, evals, *mean_scores(reference, parts), grid
    )
    for name, build in KERNELS.items():
        for evals in size.budgets:
            draws, fields = draw(build(density, evals), n * sets, jr.key(0))
            spent = int(fields["num_score_evals"][0])
            row(name, spent, np.split(draws, sets), "fixed")
    tuning = Reference(target, NUM_TUNING, sets=2)
    for name in size.solvers:
        for evals in size.budgets:
            found = size.candidates(name, evals)
            chosen = best_grid(density, name, tuning, found)
            keys = jr.split(jr.key(1), sets)
            parts = [by_solver(density, name, found[chosen], key, n) for key in keys]
            row(name, evals, parts, chosen)
    jax.clear_caches()


def averages(table: Table, name: str) -> None:
    """A table of the means over the targets, of sizes."""
    summary = Table(name, ("scores", "method", "evals", *COLUMNS[4:7]))
    rows: dict[tuple, list] = {}
    for _, source, method, evals, *values, _ in table.rows:
        rows.setdefault((source, method, evals), []).append(np.abs(values))
    for key, values in sorted(rows.items(), key=lambda item: (item[0][0], item[0][2])):
        summary.add(*key, *(float(v) for v in np.mean(values, axis=0)))


def draw_figure(table: Table) -> None:
    rows = table.records
    measures = {"W2 / floor": "log", "energy bias": "symlog"}
    floors = {"W2 / floor": 1.0, "energy bias": 0.0}
    for source in dict.fromkeys(row["scores"] for row in rows):
        part = [row for row in rows if row["scores"] == source]
        by_panel = {row["target"]: floors for row in part}
        name = f"drawing_{source.replace(' ', '_')}"
        curves(name, part, "target", "method", "evals", measures, by_panel)


def run(quick: bool, scores: str = "exact") -> None:
    size = SIZES["quick" if quick else scores]
    table = Table(f"drawing_{scores}", COLUMNS)
    targets = [unequal_circle(), chessboard(), correlated_mixture(20, 8)]
    for target in targets[:1] if quick and scores == "learned" else targets:
        reference = Reference(target, size.draws)
        densities = {"exact": target.density}
        if scores == "learned":
            densities = learned(target, quick)
        for source, density in densities.items():
            compete(table, target, reference, source, density, size)
    averages(table, f"drawing_{scores}_mean")
    draw_figure(table)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--scores", choices=("exact", "learned"), default="exact")
    args = parser.parse_args()
    run(args.quick, args.scores)


if __name__ == "__main__":
    main()
