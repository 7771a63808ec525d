"""Posteriors with many modes: RTKReplicaExchange beside what a user would run instead.

    python -m benchmarks.posteriors.contest  # all targets, all methods
    python -m benchmarks.posteriors.contest --budget 5e5                 # a short look
    python -m benchmarks.posteriors.contest --quick  # does it run: four minutes
    python -m benchmarks.posteriors.contest --targets few-10 --methods exchange smc
    python -m benchmarks.posteriors.contest --targets few-10 --name few  # output/few.*
    python -m benchmarks.posteriors.contest --merge few blocks  # several runs in one table

Error: total variation of the mode weights (for blocks, of a block's, mean over blocks; see
``problems.py`` for its targets) after so many evaluations, everything included (start,
warm-up, tuning); an evaluation is one density and gradient of one position, but for
``aies`` and ``ess``, which need no gradient. ``mean`` is the largest error of a
coordinate's mean in posterior standard deviations. ``evidence`` is the log's absolute
error, ``z`` the same in standard errors of the method's own. ``R-hat`` is ArviZ's, the
worst of all coordinates. Draws from the exact prior are free, which helps SMC and
importance resampling.

``flow + nuts`` and ``learned + exchange`` know the prior by 20,000 draws alone; ``dps`` is
biased and tuned on the error itself. They run where they apply.
"""

import argparse
import csv
import warnings
from collections.abc import Sequence

import arviz as az
import jax
import numpy as np

from benchmarks.posteriors.problem import Problem, linear_problem
from benchmarks.posteriors.problems import PROBLEMS
from benchmarks.posteriors.rivals import ensemble, guided, learned, plain, tempering
from benchmarks.shared.figures import curves
from benchmarks.shared.known_posteriors import (
    block_posterior,
    informative_posterior,
    linear_posterior,
    partly_measured,
)
from benchmarks.shared.tables import OUTPUT, Table
from benchmarks.shared.targets import correlated_mixture

TARGETS = {
    "few-10": lambda: linear_problem(partly_measured(10, 5)),
    "few-50": lambda: linear_problem(partly_measured(50, 25), n=50_000),
    "informative-12": lambda: linear_problem(informative_posterior(12)),
    "informative-20": lambda: linear_problem(informative_posterior(20)),
    "informative-40": lambda: linear_problem(informative_posterior(40), n=50_000),
    "blocks-6": lambda: linear_problem(block_posterior(6)),
    "blocks-16": lambda: linear_problem(block_posterior(16)),
    "blocks-32": lambda: linear_problem(block_posterior(32)),
    "mixture-2": lambda: linear_problem(
        linear_posterior(correlated_mixture(2, 6, 1), 1, 0.15, 101)
    ),
    "few-100": lambda: linear_problem(partly_measured(100, 50), n=50_000),
    **PROBLEMS,
}

METHODS = {
    "exchange": plain.exchange,
    "swaps": plain.plain_swaps,
    "temperature": tempering.temperature_exchange,
    "smc": tempering.tempered_smc,
    "nuts": plain.nuts,
    "importance": plain.importance,
    "aies": ensemble.aies,
    "ess": ensemble.ensemble_slice,
    "dps": guided.posterior_sampling,
    "flow + nuts": learned.flow_nuts,
    "learned + exchange": learned.learned_exchange,
}
LEARNED = ("flow + nuts", "learned + exchange")

COLUMNS = (
    "target",
    "method",
    "evaluations",
    "error",
    "worst",
    "mean",
    "evidence",
    "z",
    "R-hat",
    "seconds",
    "failures",
    "note",
)
QUICK = {
    "targets": ("mixture-2", "many-well-10"),
    "methods": ("exchange", "smc", "nuts", "aies", "dps"),
    "budget": 4e5,
}


def contest(
    name: str, problem: Problem, method: str, budget: float, seeds: Sequence[int]
) -> list[tuple]:
    """Rows of :data:`COLUMNS`, a point of the method's curve each; means over the seeds.

    A method that refuses or fails has one row that says so.
    """
    nan = float("nan")
    try:
        by_seed = [METHODS[method](problem, seed, budget) for seed in seeds]
    except Exception as error:  # a rival that fails is a row, not the end of the run
        what = " ".join(f"{type(error).__name__}: {error}".split())[:150]
        return [(name, method, 0, *[nan] * 7, what, "")]
    return [judge(name, method, problem, runs) for runs in zip(*by_seed, strict=False)]


def judge(name: str, method: str, problem: Problem, runs: Sequence) -> tuple:
    """A row from the runs of all seeds at one point of the curve."""
    errors, shifts, failures = [], [], [run.failure for run in runs if run.failure]
    for run in runs:
        x = run.draws.reshape(-1, problem.dim)
        is_usable = np.all(np.isfinite(x), axis=1)
        if not is_usable.all():
            failures.append(f"{np.sum(~is_usable)} of {len(x)} draws not finite")
        x = x[is_usable]
        errors.append(problem.error(x) if len(x) else 1.0)
        known = problem.mean is not None and len(x)
        off = np.abs(x.mean(axis=0) - problem.mean) / problem.sd if known else [np.nan]
        shifts.append(np.max(off))
    misses = np.abs([run.log_evidence - problem.log_evidence for run in runs])
    own = np.array([run.evidence_error for run in runs])
    return (
        name,
        method,
        int(np.mean([run.evals for run in runs])),
        float(np.mean(errors)),
        float(np.max(errors)),
        float(np.mean(shifts)),
        float(np.mean(misses)),
        float(np.max(misses / own)),
        max(worst_rhat(run.draws) for run in runs),
        f"{np.mean([run.seconds for run in runs]):.0f}",
        "; ".join(dict.fromkeys(failures)) or "-",
        runs[0].note,
    )


def worst_rhat(draws: np.ndarray) -> float:
    """nan where the draws come in no chains."""
    if draws.ndim == 2 or draws.shape[1] < 4 or not np.all(np.isfinite(draws)):
        return float("nan")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # more chains than draws
        data = az.convert_to_dataset({"x": np.asarray(draws, float)})
    return float(np.max(np.asarray(az.rhat(data)["x"])))


def draw_figure(table: Table) -> None:
    """Error against evaluations, a panel a target, a line a method."""
    rows = [row for row in table.records if np.isfinite(row["error"])]
    if rows:
        measures = {"error": "log"}
        curves(table.name, rows, "target", "method", "evaluations", measures)


def run(
    quick: bool = False,
    *,
    targets: Sequence[str] | None = None,
    methods: Sequence[str] | None = None,
    budget: float | None = None,
    seeds: Sequence[int] = (0,),
    num_levels: int | None = None,
    name: str = "contest",
) -> None:
    """Run it, write the table and the figure; what is None is all of it, or quick's."""
    targets = targets or (QUICK["targets"] if quick else tuple(TARGETS))
    methods = methods or (QUICK["methods"] if quick else tuple(METHODS))
    budget = budget or (QUICK["budget"] if quick else 1.2e6)
    table = Table(name, COLUMNS, more=("blackjax", "flowjax"))
    for target in targets:
        problem = TARGETS[target]()
        if num_levels:
            options = {**problem.options, "num_levels": num_levels}
            problem = problem._replace(options=options)
        for method in methods:
            if method in LEARNED and not problem.is_learnable:
                continue
            for row in contest(target, problem, method, budget, seeds):
                table.add(*row)
            jax.clear_caches()
    draw_figure(table)


def merge(names: Sequence[str], name: str) -> None:
    """One table and one figure of runs that were written under several names."""
    table = Table(name, COLUMNS, more=("blackjax", "flowjax"))
    for part in names:
        with (OUTPUT / f"{part}.csv").open(newline="") as file:
            for row in list(csv.reader(file))[1:]:
                numbers = [float(cell) for cell in row[3:9]]
                table.add(*row[:2], int(row[2]), *numbers, *row[9:])
    draw_figure(table)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--targets", nargs="+", choices=TARGETS)
    parser.add_argument("--methods", nargs="+", choices=METHODS)
    parser.add_argument("--budget", type=float, help="evaluations, 1.2e6 by default")
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--num-levels", type=int, help="of exchange and swaps")
    parser.add_argument("--name", default="contest", help="of the table and the figure")
    parser.add_argument("--merge", nargs="+", help="tables of this name; runs nothing")
    args = parser.parse_args()
    if args.merge:
        merge(args.merge, args.name)
        return
    run(
        args.quick,
        targets=args.targets,
        methods=args.methods,
        budget=args.budget,
        seeds=range(args.seed, args.seed + args.repeats),
        num_levels=args.num_levels,
        name=args.name,
    )


if __name__ == "__main__":
    main()
