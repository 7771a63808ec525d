"""Posteriors with many modes: RTKReplicaExchange beside what a user would run instead.

    python benchmarks/contest.py                          # all targets, all methods
    python benchmarks/contest.py --targets blocks-16 --methods exchange smc --repeats 3
    python benchmarks/contest.py --budget 5e5             # a short look
    python benchmarks/contest.py --csv contest.csv

Error: total variation of the mode weights (for blocks, of a block's, mean over blocks)
after so many evaluations, everything included (start, warm-up, tuning); an evaluation is
one density and gradient of one position. ``mean`` is the largest error of a coordinate's
mean in posterior standard deviations. ``evidence`` is the log's absolute error. Draws
from the exact prior are free, which helps SMC and importance resampling.
"""

import argparse
import csv

import jax
import numpy as np
import numpyro
import rivals
from targets import block_posterior, informative_posterior, partly_measured

TARGETS = {
    "few-10": lambda: partly_measured(10, 5),
    "few-50": lambda: partly_measured(50, 25),
    "informative-12": lambda: informative_posterior(12),
    "informative-20": lambda: informative_posterior(20),
    "informative-40": lambda: informative_posterior(40),
    "blocks-6": lambda: block_posterior(6),
    "blocks-16": lambda: block_posterior(16),
    "blocks-32": lambda: block_posterior(32),
}

METHODS = {
    "exchange": rivals.exchange,
    "swaps": rivals.plain_swaps,
    "temperature": rivals.temperature_exchange,
    "smc": rivals.tempered_smc,
    "nuts": rivals.nuts,
    "importance": rivals.importance,
}


def contest(name: str, method: str, args) -> list[dict]:
    """All points of one method's curve on one target; means over the repeats."""
    posterior = TARGETS[name]()
    options = {"num_levels": args.num_levels} if args.num_levels else {}
    options = options if method in ("exchange", "swaps") else {}
    curves = [
        METHODS[method](posterior, args.seed + r, args.budget, **options)
        for r in range(args.repeats)
    ]
    rows = []
    for runs in zip(*curves, strict=False):
        errors = [posterior.error(run.draws) for run in runs]
        evidence = [run.log_evidence - posterior.log_evidence for run in runs]
        shifts = [_shift(posterior, run.draws) for run in runs]
        rows.append(
            {
                "target": name,
                "method": method,
                "evaluations": np.mean([run.evals for run in runs]),
                "error": np.mean(errors),
                "worst": np.max(errors),
                "mean": np.mean(shifts),
                "evidence": np.mean(np.abs(evidence)),
                "seconds": np.mean([run.seconds for run in runs]),
                "note": runs[0].note,
            }
        )
    return rows


def _shift(posterior, draws) -> float:
    if not hasattr(posterior, "mean"):
        return np.nan
    return np.abs((draws.mean(axis=0) - posterior.mean) / posterior.sd).max()


def show(row: dict) -> None:
    print(
        f"| {row['target']} | {row['method']} | {row['evaluations'] / 1e6:.2f}M | "
        f"{row['error']:.3f} | {row['worst']:.3f} | {row['mean']:.3f} | "
        f"{row['evidence']:.3f} | {row['seconds']:.0f} s | {row['note']} |",
        flush=True,
    )


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--targets", nargs="+", default=list(TARGETS), choices=TARGETS)
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=METHODS)
    parser.add_argument("--budget", type=float, default=1.2e6, help="evaluations")
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--num-levels", type=int, help="of exchange and swaps")
    parser.add_argument("--csv", help="write the rows here as well")
    args = parser.parse_args()
    print(f"jax {jax.__version__}, numpyro {numpyro.__version__}, {args}\n")
    columns = (
        "target",
        "method",
        "evaluations",
        "error",
        "worst",
        "mean",
        "evidence",
        "seconds",
        "note",
    )
    print("| " + " | ".join(columns) + " |\n|" + "---|" * len(columns), flush=True)
    rows = []
    for name in args.targets:
        for method in args.methods:
            for row in contest(name, method, args):
                rows.append(row)
                show(row)
            jax.clear_caches()
    if args.csv:
        with open(args.csv, "w", newline="") as file:
            writer = csv.DictWriter(file, columns)
            writer.writeheader()
            writer.writerows(rows)


if __name__ == "__main__":
    main()
