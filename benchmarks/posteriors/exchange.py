"""RTKReplicaExchange on posteriors known in closed form.

    python -m benchmarks.posteriors.exchange                  # both tables
    python -m benchmarks.posteriors.exchange --quick          # does it run
    python -m benchmarks.posteriors.exchange --blocks 6 16 32 --dims --informative
    python -m benchmarks.posteriors.exchange --exchange swap  # plain swaps, the same ladder

Table ``exchange_few``: six unequal, correlated modes in d dimensions; and seven modes that
differ only in what is not measured, a quarter of the directions measured to a fifth of the
modes' sd. Table ``exchange_blocks``: B blocks of five modes each measured once, about 3**B
live modes; the error is the total variation of a block's mode weights, mean over blocks, at
all evaluations so far, warm-up and start included.
"""

import argparse

import arviz as az
import numpy as np

import numpyro_rtk as rtk
from benchmarks.shared.known_posteriors import (
    block_posterior,
    informative_posterior,
    linear_posterior,
)
from benchmarks.shared.runs import exchange_evals, make_model, sample
from benchmarks.shared.tables import Table, with_error
from benchmarks.shared.targets import correlated_mixture

CHAINS = 16
EXCHANGE_COLUMNS = ("log evidence", "true", "exchange", "worst exchange")
FEW_COLUMNS = (
    "target",
    "measured",
    "live modes",
    "TV",
    "mean off by (sd)",
    "sd ratio",
    "R-hat",
    *EXCHANGE_COLUMNS,
    "ESS of modes / 1,000 evaluations",
    "evaluations / round trip",
    "levels suggested",
    "evaluations",
    "s",
)
BLOCK_COLUMNS = ("B", "seed", "evaluations", "TV", *EXCHANGE_COLUMNS, "s")


def run(posterior, num_warmup: int, num_samples: int, seed: int, options: dict):
    """The run, draws, evaluations after so many of them, and seconds."""
    kernel = rtk.RTKReplicaExchange(make_model(posterior), **options)
    mcmc, x, seconds = sample(kernel, posterior, num_warmup, num_samples, CHAINS, seed)
    evals = lambda draws: exchange_evals(
        kernel, mcmc.last_state, CHAINS, num_warmup + draws
    )
    return mcmc, x, evals, seconds


def options(args) -> dict:
    """Of the kernel; what is not asked for is its default."""
    levels = {} if args.num_levels is None else {"num_levels": args.num_levels}
    return {"exchange": args.exchange, **levels}


def exchange_values(report, posterior) -> tuple:
    accepted = report.swap_accept_prob
    return (
        with_error(*report.log_evidence),
        posterior.log_evidence,
        accepted.mean(),
        accepted.min(),
    )


def few_modes(table: Table, name: str, posterior, args) -> None:
    measured, dim = posterior.design.shape
    draws = 100 if args.quick else args.draws
    mcmc, x, evals, seconds = run(posterior, 200, draws, args.seed, options(args))
    flat, total = x.reshape(-1, dim), evals(draws)
    alive = [j for j, w in enumerate(posterior.weights) if 0.02 < w < 0.98]
    modes = np.stack([posterior.assign(chain) for chain in x])
    ess = np.nan  # of the indicators; with one live mode there is none
    if alive:
        indicators = np.stack([modes == j for j in alive], axis=-1).astype(float)
        every = az.ess(az.convert_to_dataset({"mode": indicators}))["mode"]
        ess = np.asarray(every).min()
    report = rtk.diagnose(mcmc)
    ratio = flat.std(axis=0) / posterior.sd
    table.add(
        name,
        measured,
        len(alive),
        posterior.error(flat),
        np.abs((flat.mean(axis=0) - posterior.mean) / posterior.sd).max(),
        f"{ratio.min():.3f}-{ratio.max():.3f}",
        float(np.max(az.rhat(az.convert_to_dataset({"x": x}))["x"])),
        *exchange_values(report, posterior),
        1000 * ess / total,
        total / max(report.round_trips.sum(), 1),
        int(report.suggested_levels),
        int(total),
        f"{seconds:.0f}",
    )


def blocks(table: Table, num_blocks: int, args) -> None:
    posterior = block_posterior(num_blocks)
    draws, truth = 40 if args.quick else 320, posterior.true_shares()
    for seed in range(args.seed, args.seed + args.repeats):
        mcmc, x, evals, seconds = run(posterior, 60, draws, seed, options(args))
        values = exchange_values(rtk.diagnose(mcmc), posterior)
        for part in (draws // 8, draws // 4, draws // 2, draws):
            error = posterior.error(x[:, :part].reshape(-1, x.shape[-1]), truth)
            spent = int(evals(part))
            table.add(num_blocks, seed, spent, error, *values, f"{seconds:.0f}")


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--dims", type=int, nargs="*", default=[2, 10, 50])
    parser.add_argument("--informative", type=int, nargs="*", default=[12, 20, 40])
    parser.add_argument("--blocks", type=int, nargs="*", default=[6, 16, 32])
    parser.add_argument("--exchange", default="best", choices=["best", "rtk", "swap"])
    parser.add_argument("--num-levels", type=int)
    parser.add_argument("--repeats", type=int, default=1, help="seeds of the blocks")
    parser.add_argument("--draws", type=int, default=1000, help="of the few modes")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    if args.quick:
        args.dims, args.informative, args.blocks = [2], [12], [6]
    if args.dims or args.informative:
        table = Table("exchange_few", FEW_COLUMNS)
        for dim in args.dims:
            prior = correlated_mixture(dim, 6, 1)
            posterior = linear_posterior(prior, max(1, dim // 10), 0.15, 101)
            few_modes(table, f"six modes, d = {dim}", posterior, args)
        for dim in args.informative:
            posterior = informative_posterior(dim)
            few_modes(table, f"informative, d = {dim}", posterior, args)
    if args.blocks:
        table = Table("exchange_blocks", BLOCK_COLUMNS)
        for num_blocks in args.blocks:
            blocks(table, num_blocks, args)


if __name__ == "__main__":
    main()
