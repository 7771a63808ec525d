"""RTKReplicaExchange on posteriors known in closed form.

    python benchmarks/exchange.py                 # all parts
    python benchmarks/exchange.py --quick
    python benchmarks/exchange.py --blocks 6 16 32 --dims --informative
    python benchmarks/exchange.py --exchange swap # plain swaps on the same kind of ladder

Part 1: six unequal, correlated modes in d dimensions. Part 2: B blocks of five modes each
measured once, about 3**B live modes; the error is the total variation of a block's mode
weights, mean over blocks, at all evaluations so far, warm-up and start included. Part 3:
seven modes that differ only in what is not measured, a quarter of the directions measured
to a fifth of the modes' sd.
"""

import argparse

import arviz as az
import jax
import numpy as np
import numpyro
from models import exchange_evals, make_model, sample
from targets import (
    block_posterior,
    correlated_mixture,
    informative_posterior,
    linear_posterior,
)

import numpyro_rtk as rtk

CHAINS = 16


def run(posterior, num_warmup: int, num_samples: int, seed: int, options: dict):
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


def handful(posterior, args) -> None:
    observed, dim = posterior.design.shape
    sd = posterior.noise_sd
    draws = 100 if args.quick else args.draws
    mcmc, x, evals, seconds = run(posterior, 200, draws, args.seed, options(args))
    flat = x.reshape(-1, dim)
    tv = posterior.error(flat)
    alive = [j for j, w in enumerate(posterior.weights) if 0.02 < w < 0.98]
    modes = np.stack([posterior.assign(chain) for chain in x])
    ess = np.nan  # of the indicators; with one live mode there is none
    if alive:
        indicators = np.stack([modes == j for j in alive], axis=-1).astype(float)
        every = az.ess(az.convert_to_dataset({"mode": indicators}))["mode"]
        ess = np.asarray(every).min()
    rhat = float(np.max(az.rhat(az.convert_to_dataset({"x": x}))["x"]))
    value, error = rtk.log_evidence(mcmc)
    report = rtk.diagnose(mcmc)
    shift = np.abs((flat.mean(axis=0) - posterior.mean) / posterior.sd).max()
    ratio = flat.std(axis=0) / posterior.sd
    total = evals(draws)
    print(
        f"d = {dim}, {observed} measured with sd {sd:.2g}, {len(alive)} modes: TV "
        f"{tv:.3f}, mean off {shift:.3f} sd, sd ratio "
        f"{ratio.min():.3f}-{ratio.max():.3f}, R-hat {rhat:.3f}, log "
        f"evidence {value:.3f} +- {error:.3f} (true "
        f"{posterior.log_evidence:.3f}), ESS of modes per 1000 evaluations "
        f"{1000 * ess / total:.2f}, exchange {report.swap_accept_prob.mean():.2f} (worst "
        f"{report.swap_accept_prob.min():.2f}), {report.round_trips.mean():.0f} round "
        f"trips of {total / max(report.round_trips.sum(), 1):.0f} evaluations, "
        f"{report.suggested_levels} levels suggested, {total / 1e6:.2f}M evaluations, "
        f"{seconds:.0f} s",
        flush=True,
    )


def blocks(num_blocks: int, args) -> None:
    posterior = block_posterior(num_blocks)
    draws = 40 if args.quick else 320
    for seed in range(args.seed, args.seed + args.repeats):
        mcmc, x, evals, seconds = run(posterior, 60, draws, seed, options(args))
        curve = []
        for part in (draws // 8, draws // 4, draws // 2, draws):
            flat = x[:, :part].reshape(-1, x.shape[-1])
            error = posterior.error(flat)
            curve.append(f"{error:.3f} @ {evals(part) / 1e6:.2f}M")
        value, error = rtk.log_evidence(mcmc)
        report = rtk.diagnose(mcmc)
        print(
            f"B = {num_blocks} (d = {2 * num_blocks}), seed {seed}: block TV "
            f"{', '.join(curve)}; log evidence {value:.2f} +- {error:.2f} (true "
            f"{posterior.log_evidence:.2f}), exchange "
            f"{report.swap_accept_prob.mean():.2f} (worst "
            f"{report.swap_accept_prob.min():.2f}), {seconds:.0f} s",
            flush=True,
        )


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--dims", type=int, nargs="*", default=[2, 10, 50])
    parser.add_argument("--informative", type=int, nargs="*", default=[12, 20, 40])
    parser.add_argument("--blocks", type=int, nargs="*", default=[6, 16, 32])
    parser.add_argument("--exchange", default="best", choices=["best", "rtk", "swap"])
    parser.add_argument("--num-levels", type=int)
    parser.add_argument("--repeats", type=int, default=1, help="seeds of part 2")
    parser.add_argument("--draws", type=int, default=1000, help="of parts 1 and 3")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    print(f"jax {jax.__version__}, numpyro {numpyro.__version__}, {args}")
    for dim in args.dims:
        prior = correlated_mixture(dim, 6, 1)
        handful(linear_posterior(prior, max(1, dim // 10), 0.15, 101), args)
    for dim in args.informative:
        handful(informative_posterior(dim), args)
    for num_blocks in args.blocks:
        blocks(num_blocks, args)


if __name__ == "__main__":
    main()
