"""RTKMALA on small posteriors that are known: mode weights, moments, ESS, evidence.

    python -m benchmarks.posteriors.small
    python -m benchmarks.posteriors.small --quick  # does it run

Two tables: of the exact kernel, with the worst z of its means and second moments; and of
the weighted one (``corrected=False``), with evidence / truth, mean of 20 repetitions from
the raw weights, and its z.
"""

import argparse

import arviz as az
import numpy as np

import numpyro_rtk as rtk
from benchmarks.shared.known_posteriors import LinearPosterior, linear_posterior
from benchmarks.shared.runs import make_model, sample
from benchmarks.shared.tables import Table
from benchmarks.shared.targets import correlated_mixture

EXACT_COLUMNS = (
    "d",
    "measured",
    "TV",
    "z of means",
    "z of second moments",
    "ESS / draw",
    "acceptance",
    "R-hat",
    "evaluations / draw",
    "s",
)
WEIGHTED_COLUMNS = (
    "d",
    "measured",
    "evidence / truth",
    "z",
    "TV",
    "TV without weights",
    "ESS / draw",
    "Pareto k",
)
CHAINS, REPETITIONS = 16, 20


def exact(posterior: LinearPosterior, num_samples: int) -> tuple:
    kernel = rtk.RTKMALA(make_model(posterior))
    mcmc, x, seconds = sample(kernel, posterior, 200, num_samples, CHAINS, 0)
    flat = x.reshape(-1, x.shape[-1])
    data = az.convert_to_dataset({"x": x, "square": x**2})
    ess = az.ess(data)
    ess, ess_square = np.asarray(ess["x"]), np.asarray(ess["square"])
    z = (flat.mean(axis=0) - posterior.mean) / (posterior.sd / np.sqrt(ess))
    second = flat**2 - (posterior.sd**2 + posterior.mean**2)
    z_square = second.mean(axis=0) / (second.std(axis=0) / np.sqrt(ess_square))
    fields = mcmc.get_extra_fields()
    return (
        posterior.error(flat),
        np.abs(z).max(),
        np.abs(z_square).max(),
        ess.min() / len(flat),
        np.mean(fields["accept_prob"]),
        float(np.max(az.rhat(data)["x"])),
        int(fields["num_score_evals"][0]),
        f"{seconds:.0f}",
    )


def weighted(posterior: LinearPosterior, num_samples: int) -> tuple:
    kernel = rtk.RTKMALA(make_model(posterior), corrected=False)
    mcmc, x, _ = sample(kernel, posterior, 50, num_samples, REPETITIONS, 1)
    log_w = np.asarray(mcmc.get_extra_fields(group_by_chain=True)["log_weight"])
    ratios = np.exp(log_w - posterior.log_evidence).mean(axis=1)
    z = (ratios.mean() - 1.0) / (ratios.std(ddof=1) / np.sqrt(REPETITIONS))
    w = np.exp(log_w - log_w.max()).ravel()
    flat, truth = x.reshape(-1, x.shape[-1]), posterior.true_shares()
    return (
        ratios.mean(),
        z,
        0.5 * np.abs(posterior.shares(flat, w) - truth).sum(),
        posterior.error(flat, truth),
        w.sum() ** 2 / np.sum(w**2) / w.size,
        float(rtk.pareto_k(log_w.ravel())),
    )


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--dims", type=int, nargs="+", default=[2, 5])
    args = parser.parse_args()
    if args.quick:
        args.dims = [2]
    draws = 100 if args.quick else 1000
    posteriors = [
        linear_posterior(correlated_mixture(dim, 6, seed), measured, sd, seed + 100)
        for dim in args.dims
        for seed, measured, sd in ((1, 1, 0.15), (2, max(1, dim // 2), 0.3))
    ]
    for name, columns, run in (
        ("small_exact", EXACT_COLUMNS, exact),
        ("small_weighted", WEIGHTED_COLUMNS, weighted),
    ):
        table = Table(name, columns)
        for posterior in posteriors:
            measured, dim = posterior.design.shape
            table.add(dim, measured, *run(posterior, draws))


if __name__ == "__main__":
    main()
