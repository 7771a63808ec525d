"""How good is the learned density? Figures against a known truth, with defaults.

    python benchmarks/learned_prior.py mixture --dim 10 --seeds 0 1
    python benchmarks/learned_prior.py posterior --dims 2 10 50 --blocks 6 16

``mixture``: an asymmetric mixture of 6 correlated Gaussians with unequal weights.
Prints the standard deviation and the mean of the error of the log density (nats) on
fresh draws of the truth, the total variation between the learned and the true mode
weights, the error of the score, the wall time of training with compilation, and the
CPU time, and beside them what maximum likelihood reaches in the truth's own family (EM
from the true components): with p parameters and n rows its log density has an error of
about sqrt(p / n). ``posterior``: the priors of ``benchmarks/exchange.py`` (mixtures under
few precise data, and blocks with 5**B modes), learned from 20,000 draws, under the same
likelihoods; prints the total variation of the posterior's mode weights (of a block's, mean
over blocks), by ``RTKReplicaExchange`` with the learned prior and with the exact one.
"""

import argparse
import resource
import time

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from models import make_model, sample as run_kernel
from sklearn.mixture import GaussianMixture
from targets import block_posterior, correlated_mixture, linear_posterior
from truths import Mixture

import numpyro_rtk as rtk
from numpyro_rtk.training.fit import fit


def timed_fit(key, samples, **options):
    before, start = resource.getrusage(resource.RUSAGE_SELF), time.perf_counter()
    model, history = fit(key, samples, **options)
    wall = time.perf_counter() - start
    after = resource.getrusage(resource.RUSAGE_SELF)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return model, history, wall, cpu


def mixture_figures(
    dim: int, num_samples: int, seed: int, floor: float, **options
) -> dict:
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
    return {
        "sd": error.std(),
        "offset": error.mean(),
        "weights_tv": 0.5 * np.abs(weights - empirical).sum(),
        "score_error": np.mean((np.asarray(score) - exact) ** 2) / np.mean(exact**2),
        "best_possible_sd": best_possible(truth, samples, held_out),
        "components": 1
        if not hasattr(model.base, "log_weights")
        else len(model.base.log_weights),
        "best_step": int(history["best_step"]),
        "steps": int(history["step"][-1]),
        "wall_s": wall,
        "cpu_s": cpu,
    }


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


def posterior_figures(posterior, seed: int, num_samples: int, **options) -> dict:
    exact = posterior.prior
    rows = np.asarray(exact.sample(jr.key(100 + seed), (num_samples,)), float)
    model, history, wall, _ = timed_fit(jr.key(seed), rows, **options)
    found = {"train_s": wall, "best_step": int(history["best_step"])}
    for name, prior in (("learned", model), ("exact", exact)):
        kernel = rtk.RTKReplicaExchange(make_model(posterior._replace(prior=prior)))
        _, x, seconds = run_kernel(kernel, posterior, 200, 600, 16, seed)
        found[f"tv_{name}"] = posterior.error(x.reshape(-1, x.shape[-1]))
        found[f"{name}_s"] = seconds
    return found


def show(name: str, figures: dict) -> None:
    shown = "  ".join(
        f"{k} {v:.3g}" if isinstance(v, float | np.floating | jax.Array) else f"{k} {v}"
        for k, v in figures.items()
    )
    print(f"{name}: {shown}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("target", choices=["mixture", "posterior"])
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
    options = {
        name: getattr(args, name)
        for name in ("num_steps", "num_components")
        if getattr(args, name)
    }
    options["progress_bar"] = False
    for seed in args.seeds:
        for dim in args.dims:
            title = f"{args.target} d={dim} n={args.num_samples} seed={seed}"
            if args.target == "mixture":
                show(
                    title,
                    mixture_figures(dim, args.num_samples, seed, args.floor, **options),
                )
            else:
                prior = correlated_mixture(dim, 6, 1)
                posterior = linear_posterior(prior, max(1, dim // 10), 0.15, 101)
                show(
                    title,
                    posterior_figures(posterior, seed, args.num_samples, **options),
                )
        for num in args.blocks if args.target == "posterior" else []:
            figures = posterior_figures(
                block_posterior(num), seed, args.num_samples, **options
            )
            show(f"posterior B={num} n={args.num_samples} seed={seed}", figures)


if __name__ == "__main__":
    main()
