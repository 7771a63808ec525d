"""How good is the learned density? Against a known truth, with defaults.

    python -m benchmarks.densities.learned_prior          # both tables
    python -m benchmarks.densities.learned_prior --only mixture --dims 10 --seeds 0 1
    python -m benchmarks.densities.learned_prior --quick  # does it run

``mixture``: an asymmetric mixture of 6 correlated Gaussians with unequal weights. Standard
deviation and mean of the error of the log density (nats) on fresh draws of the truth, the
total variation between the learned and the true mode weights, the relative error of the
score, the wall time of training with compilation, and the CPU time; and what maximum
likelihood reaches in the truth's own family (EM from the true components): with p
parameters and n rows its log density has an error of about sqrt(p / n).

``posterior``: the priors of ``posteriors/exchange.py`` (mixtures under few precise data,
and blocks with 5**B modes), learned from 20,000 draws, under the same likelihoods: total
variation of the posterior's mode weights (of a block's, mean over blocks), by
``RTKReplicaExchange`` with the learned prior and with the exact one.
"""

import argparse
import resource
import time

import equinox as eqx
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from sklearn.mixture import GaussianMixture

import numpyro_rtk as rtk
from benchmarks.densities.truths import Mixture
from benchmarks.shared.known_posteriors import block_posterior, linear_posterior
from benchmarks.shared.runs import make_model, sample
from benchmarks.shared.tables import Table
from benchmarks.shared.targets import correlated_mixture

MIXTURE_COLUMNS = (
    "d",
    "seed",
    "sd of error",
    "mean error",
    "weights TV",
    "error of score",
    "sd, maximum likelihood",
    "best step",
    "steps",
    "s",
    "CPU s",
)
POSTERIOR_COLUMNS = (
    "target",
    "seed",
    "TV, learned prior",
    "TV, exact prior",
    "best step",
    "s of training",
    "s, learned prior",
    "s, exact prior",
)


def timed_fit(key, samples, **options):
    before, start = resource.getrusage(resource.RUSAGE_SELF), time.perf_counter()
    model, history = rtk.fit(key, samples, progress_bar=False, **options)
    wall = time.perf_counter() - start
    after = resource.getrusage(resource.RUSAGE_SELF)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return model, history, wall, cpu


def mixture_row(dim: int, seed: int, num_samples: int, floor: float, options) -> tuple:
    rng = np.random.default_rng(seed)
    truth = Mixture(rng, dim, floor)
    samples, _ = truth.draw(rng, num_samples)
    held_out, which = truth.draw(rng, 20_000)
    model, history, wall, cpu = timed_fit(jr.key(seed), samples, **options)
    log_density, score = eqx.filter_jit(model.log_density_and_score)(
        jnp.asarray(held_out, jnp.float32), 0.0
    )
    error = np.asarray(log_density, float) - truth.log_density(held_out)
    # weight_j of the model = E_truth[1(mode j) p_model / p_truth], normalised
    ratio = np.exp(error - error.max())
    weights = np.bincount(which, ratio, minlength=len(truth.weights))
    weights /= weights.sum()
    empirical = np.bincount(which, minlength=len(truth.weights)) / len(which)
    exact = truth.score(held_out)
    return (
        error.std(),
        error.mean(),
        0.5 * np.abs(weights - empirical).sum(),
        np.mean((np.asarray(score) - exact) ** 2) / np.mean(exact**2),
        best_possible(truth, samples, held_out),
        int(history["best_step"]),
        int(history["step"][-1]),
        f"{wall:.0f}",
        f"{cpu:.0f}",
    )


def best_possible(truth: Mixture, samples: np.ndarray, held_out: np.ndarray) -> float:
    """The same error of maximum likelihood that knows the components."""
    by_em = GaussianMixture(
        len(truth.weights),
        weights_init=truth.weights,
        means_init=truth.means,
        precisions_init=np.linalg.inv(truth.covariances),
        max_iter=50,
    ).fit(samples)
    error = by_em.score_samples(held_out) - truth.log_density(held_out)
    return error.std()


def posterior_row(posterior, seed: int, num_samples: int, draws: int, options) -> tuple:
    exact = posterior.prior
    rows = np.asarray(exact.sample(jr.key(100 + seed), (num_samples,)), float)
    model, history, wall, _ = timed_fit(jr.key(seed), rows, **options)
    errors, times = [], []
    for prior in (model, exact):
        kernel = rtk.RTKReplicaExchange(make_model(posterior._replace(prior=prior)))
        _, x, seconds = sample(kernel, posterior, 200, draws, 16, seed)
        errors.append(posterior.error(x.reshape(-1, x.shape[-1])))
        times.append(f"{seconds:.0f}")
    return *errors, int(history["best_step"]), f"{wall:.0f}", *times


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    kinds = ("mixture", "posterior")
    parser.add_argument("--only", nargs="+", choices=kinds, default=list(kinds))
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--dims", type=int, nargs="*", default=[2, 10, 50])
    parser.add_argument("--blocks", type=int, nargs="*", default=[6, 16])
    parser.add_argument("--num-samples", type=int, default=20_000)
    parser.add_argument(
        "--floor",
        type=float,
        default=1.0,
        help="isotropic share of the components' covariances, against 1 for the rest",
    )
    parser.add_argument("--num-steps", type=int)
    parser.add_argument("--num-components", type=int)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    args = parser.parse_args()
    if args.quick:
        args.dims, args.blocks, args.num_samples, args.num_steps = [2], [], 2000, 250
    options = {"num_steps": args.num_steps} if args.num_steps else {}
    options["training"] = rtk.Training(num_components=args.num_components)
    if "mixture" in args.only:
        table = Table("learned_mixture", MIXTURE_COLUMNS, more=("scikit-learn",))
        for seed in args.seeds:
            for dim in args.dims:
                row = mixture_row(dim, seed, args.num_samples, args.floor, options)
                table.add(dim, seed, *row)
    if "posterior" in args.only:
        posteriors = {}
        for dim in args.dims:
            prior, measured = correlated_mixture(dim, 6, 1), max(1, dim // 10)
            posteriors[f"d = {dim}"] = linear_posterior(prior, measured, 0.15, 101)
        posteriors |= {f"{num} blocks": block_posterior(num) for num in args.blocks}
        table = Table("learned_posterior", POSTERIOR_COLUMNS)
        draws = 50 if args.quick else 600
        for seed in args.seeds:
            for name, posterior in posteriors.items():
                row = posterior_row(posterior, seed, args.num_samples, draws, options)
                table.add(name, seed, *row)


if __name__ == "__main__":
    main()
