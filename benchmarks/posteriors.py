"""RTKMALA on models whose posterior is known: mode weights, moments, ESS, evidence.

python benchmarks/posteriors.py            # the figures of the README
python benchmarks/posteriors.py --quick
"""

import argparse

import arviz as az
import jax
import numpy as np
import numpyro
from models import make_model, sample
from targets import correlated_mixture, linear_posterior

import numpyro_rtk as rtk


def corrected(posterior, num_chains, num_warmup, num_samples, **options):
    kernel = rtk.RTKMALA(make_model(posterior), **options)
    mcmc, x, seconds = sample(kernel, posterior, num_warmup, num_samples, num_chains, 0)
    flat = x.reshape(-1, x.shape[-1])
    tv = posterior.error(flat)
    data = az.convert_to_dataset({"x": x})
    ess = np.asarray(az.ess(data)["x"])
    z = (flat.mean(axis=0) - posterior.mean) / (posterior.sd / np.sqrt(ess))
    second = flat**2 - (posterior.sd**2 + posterior.mean**2)
    ess2 = np.asarray(az.ess(az.convert_to_dataset({"x": x**2}))["x"])
    z2 = second.mean(axis=0) / (second.std(axis=0) / np.sqrt(ess2))
    extra = mcmc.get_extra_fields()
    print(
        f"  corrected: TV {tv:.3f}, worst z mean {np.abs(z).max():.2f}, second moment "
        f"{np.abs(z2).max():.2f}, ESS/draw {ess.min() / len(flat):.2f}, accept "
        f"{np.mean(extra['accept_prob']):.2f}, R-hat "
        f"{float(np.max(az.rhat(data)['x'])):.3f}, evals/draw "
        f"{int(extra['num_score_evals'][0])}, {seconds:.0f} s",
        flush=True,
    )


def weighted(posterior, repetitions, draws_each):
    kernel = rtk.RTKMALA(make_model(posterior), corrected=False)
    mcmc, x, _ = sample(kernel, posterior, 50, draws_each, repetitions, 1)
    log_w = np.asarray(mcmc.get_extra_fields(group_by_chain=True)["log_weight"])
    estimates = np.exp(log_w - posterior.log_evidence).mean(axis=1)
    z = (estimates.mean() - 1.0) / (estimates.std(ddof=1) / np.sqrt(repetitions))
    w = np.exp(log_w - log_w.max()).ravel()
    flat = x.reshape(-1, x.shape[-1])
    tv = 0.5 * np.abs(posterior.shares(flat, w) - posterior.true_shares()).sum()
    raw = 0.5 * np.abs(posterior.shares(flat) - posterior.true_shares()).sum()
    kish = w.sum() ** 2 / np.sum(w**2) / w.size
    print(
        f"  weights: evidence / truth {estimates.mean():.3f} (z {z:+.2f} over "
        f"{repetitions} repetitions), weighted TV {tv:.3f} (unweighted {raw:.3f}), "
        f"ESS fraction {kish:.2f}, Pareto k {rtk.pareto_k(log_w.ravel()):.2f}",
        flush=True,
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--dims", type=int, nargs="+", default=[2, 5, 10])
    args = parser.parse_args()
    draws = 100 if args.quick else 1000
    print(f"jax {jax.__version__}, numpyro {numpyro.__version__}, seeds fixed")
    for dim in args.dims:
        for seed, observed, sd in ((1, 1, 0.15), (2, max(1, dim // 2), 0.3)):
            posterior = linear_posterior(
                correlated_mixture(dim, 6, seed), observed, sd, seed + 100
            )
            print(
                f"d = {dim}, {observed} observations, modes {posterior.weights.round(2)}"
            )
            corrected(posterior, 16, 200, draws)
            weighted(posterior, 20, draws)


if __name__ == "__main__":
    main()
