"""Posteriors from a score: RTKParticleGibbs beside what others do with one.

    python -m benchmarks.posteriors.score_rivals                  # all of it
    python -m benchmarks.posteriors.score_rivals --quick          # does it run
    python -m benchmarks.posteriors.score_rivals --problems mixture --repeats 20
    python -m benchmarks.posteriors.score_rivals --problems blocks --methods tds

Everyone has as many evaluations of the network, start and warm-up included. Rivals are
tuned on the error itself, against the truth, by a free search over a grid; ours runs by its
defaults. One figure a column, mean over the repeats, the first one's range beside it; see
``score_problems.py`` for the problems and what they are judged by. The exchange has the
energy, which the others have not.
"""

import argparse
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import NamedTuple

import jax
import numpy as np

from benchmarks.posteriors.levy import LAWS, OPERATORS
from benchmarks.posteriors.rivals import filters, guided, plain, split
from benchmarks.posteriors.rivals.plain import Run
from benchmarks.posteriors.score_problems import (
    Case,
    blocks,
    levy_signal,
    mixture,
    slcp,
    two_moons,
)
from benchmarks.shared.tables import Table

METHODS = {
    "RTKParticleGibbs": plain.particle_gibbs,
    "RTKReplicaExchange": plain.exchange,
    "TDS": filters.twisted,
    "MCGDiff": filters.guided_particles,
    "DPS": guided.posterior_sampling,
    "PnP-DM": split.split_gibbs,
    "DAPS": split.decoupled,
}
# Methods that take the number of draws as an option; and what --quick's budget pays for.
BY_DRAWS = ("DPS", "PnP-DM", "DAPS")
QUICK = {"RTKParticleGibbs": {"num_particles": 16}}


class Question(NamedTuple):
    """Cases of one kind, in one table.

    Attributes:
        cases: by name, ``seed -> Case``.
        figures: the columns, as a case's figures are called.
        budget: evaluations of a run; reduced by ``--quick``.
        num_draws: of those who choose how many draws share the budget.
    """

    cases: Mapping[str, Callable[[int], Case]]
    figures: tuple[str, ...]
    budget: float
    num_draws: int


QUESTIONS = {
    "mixture": Question(
        {
            f"offset {offset}{', noise 1e-8' * is_precise}": partial(
                mixture, offset=offset, is_precise=is_precise
            )
            for is_precise in (False, True)
            for offset in (0, 5, 10)
        },
        (
            "sliced W1 / floor",
            "sliced W1",
            "draws",
            "TV of modes",
            "of exact draws",
            "misfit",
        ),
        1e6,
        1000,
    ),
    "blocks": Question(
        {"16 blocks": lambda seed: blocks()},
        ("TV of a block's modes", "of exact draws"),
        5e6,
        4000,
    ),
    "moons": Question(
        {"two moons, trained": two_moons},
        ("TV of x_0 in 22 cells", "of exact draws", "sd ratio of x_1"),
        4e6,
        4000,
    ),
    "slcp": Question(
        # at the prior's mean, where all who look ahead begin, no sd is above the least one:
        # its square is how steep the likelihood is there
        {
            f"SLCP, trained, sd above {least_sd:g}": partial(slcp, least_sd=least_sd)
            for least_sd in (1e-3, 0.1)
        },
        (
            "TV of |theta_3|, |theta_4|, theta_5 in cells",
            "of exact draws",
            "TV of the four modes",
            "by exact draws",
            "mean off, sd",
            "outside the box",
        ),
        20e6,
        4000,
    ),
    "levy": Question(
        {
            f"{law}, {operator}": partial(levy_signal, law=law, operator=operator)
            for law in LAWS
            for operator in OPERATORS
        },
        ("gap to the MMSE, dB", "coverage of 90 %", "of the gold chains"),
        1.5e6,
        500,
    ),
}


def run_case(case: Case, method: str, seed: int, budget: float, **options) -> Run:
    """A method's run; one that refuses or fails has no draws and says why."""
    try:
        run = METHODS[method](case.problem, seed, budget, cuts=(1,), **options)[-1]
    except Exception as error:  # a rival that fails is a row, not the end of the run
        what = " ".join(f"{type(error).__name__}: {error}".split())[:150]
        return Run(np.zeros((0, case.problem.dim)), 0, np.nan, failure=what)
    finally:
        jax.clear_caches()
    x = run.draws.reshape(-1, case.problem.dim)
    usable = np.all(np.isfinite(x), axis=1)
    lost = f"{np.sum(~usable)} of {len(x)} draws not finite" if not usable.all() else ""
    return run._replace(draws=x[usable], failure=run.failure or lost)


def row(cases: Sequence[Case], runs: Sequence[Run], figures: Sequence[str]) -> list:
    """Means over the repeats that have draws, and what was wrong."""
    found = [
        case.figures(run.draws)
        for case, run in zip(cases, runs, strict=True)
        if len(run.draws)
    ]
    values = [[each[name] for each in found] for name in figures]
    means = [float(np.mean(value)) if value else float("nan") for value in values]
    least, most = (min(values[0]), max(values[0])) if found else (np.nan, np.nan)
    failures = [run.failure for run in runs if run.failure]
    return [
        f"{len(found)} of {len(runs)}",
        int(np.mean([run.evals for run in runs if len(run.draws)] or [0])),
        *means,
        f"{least:.2f}-{most:.2f}" if found else "",
        f"{np.nanmean([run.seconds for run in runs] if found else [0.0]):.0f}",
        "; ".join(dict.fromkeys(run.note for run in runs if run.note)),
        "; ".join(dict.fromkeys(failures)) or "-",
    ]


def answer(name: str, args: argparse.Namespace) -> None:
    """One table."""
    question = QUESTIONS[name]
    columns = ("problem", "method", "repeats", "evaluations", *question.figures)
    columns += (f"range of {question.figures[0]}", "s", "chosen", "failures")
    table = Table(f"score_{name}{args.suffix}", columns)
    budget = args.budget or question.budget / (5 if args.quick else 1)
    num_draws = question.num_draws // (5 if args.quick else 1)
    names = [
        case for case in question.cases if args.cases is None or case in args.cases
    ]
    for case_name in names[:1] if args.quick else names:
        seeds = range(args.seed, args.seed + args.repeats)
        cases = [question.cases[case_name](seed) for seed in seeds]
        for method in args.methods:
            options = QUICK.get(method, {}) if args.quick else {}
            if method in BY_DRAWS:
                options = {"num_draws": num_draws}
            runs = [
                run_case(case, method, seed, budget, **options)
                for seed, case in zip(seeds, cases, strict=True)
            ]
            table.add(case_name, method, *row(cases, runs, question.figures))


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--problems", nargs="+", choices=QUESTIONS)
    parser.add_argument("--cases", nargs="+", help="of a table: some of its problems")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--budget", type=float, help="evaluations of a run")
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--suffix", default="", help="of the tables' names")
    args = parser.parse_args()
    for name in args.problems or QUESTIONS:
        answer(name, args)


if __name__ == "__main__":
    main()
