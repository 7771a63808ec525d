"""Complete a handwritten digit from a few noisy pixels.

1. Learn a prior from 1,597 small images (scikit-learn's digits, written as the weights
   of their leading principal components).
2. Write it in a NumPyro model next to an ordinary site, the camera's noise.
3. Sample the posterior of a digit that the prior has never seen, and check the result
   against the pixels that were hidden.

Run it with ``python examples/quickstart.py``; one to two minutes on two CPU cores.
"""

import argparse
import pathlib
import time

import arviz as az
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import numpyro
import numpyro.distributions as dist
from numpyro.diagnostics import effective_sample_size, split_gelman_rubin
from numpyro.infer import MCMC
from scipy.ndimage import affine_transform
from sklearn.datasets import load_digits

import numpyro_rtk as rtk

NUM_HELD_OUT = 200
NOISE = 0.25  # sd of the camera's noise; the pixels are between 0 and 1
RHAT_LIMIT = 1.05
PARETO_LIMIT = 0.7


def load_images():
    """Images to learn from, and images that nothing below learns from."""
    images = load_digits().images / 16.0
    images = images[np.random.default_rng(0).permutation(len(images))]
    return images[:-NUM_HELD_OUT], images[-NUM_HELD_OUT:]


def jittered(images, copies=16, seed=1):
    """Each image, and copies of it turned, stretched and moved by less than a pixel."""
    rng = np.random.default_rng(seed)
    centre = np.array([3.5, 3.5])

    def jitter(image):
        angle = 0.05 * rng.normal()
        turn = np.array(
            [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
        )
        matrix = turn * np.exp(0.03 * rng.normal(size=2))
        offset = centre - matrix @ centre + 0.15 * rng.normal(size=2)
        return affine_transform(image, matrix, offset=offset, order=1)

    more = [jitter(image) for _ in range(copies - 1) for image in images]
    return np.concatenate([images, np.stack(more)])


def principal_components(images, num_components):
    """Mean image, ``(64,)``, and components, ``(num_components, 64)``."""
    flat = images.reshape(len(images), -1)
    mean = flat.mean(axis=0)
    return mean, np.linalg.svd(flat - mean, full_matrices=False)[2][:num_components]


def make_model(prior, mean, components):
    """The generative model: code -> image -> noisy pixels."""

    def model(pixels, y=None):
        code = numpyro.sample("code", prior)
        image = numpyro.deterministic("image", mean + code @ components)
        sigma = numpyro.sample("sigma", dist.HalfNormal(0.5))
        numpyro.sample("y", dist.Normal(image[pixels], sigma), obs=y)

    return model


def worst_rhat_and_ess(samples):
    """Over the code and the noise, from draws of shape (chains, draws, ...)."""
    rhat = [np.max(split_gelman_rubin(np.asarray(v))) for v in samples]
    ess = [np.min(effective_sample_size(np.asarray(v))) for v in samples]
    return float(max(rhat)), float(min(ess))


def report_truth(draws, sigma, truth, hidden, mean, train, pixels, y, rng):
    """How well the hidden pixels are predicted, against simple rivals."""
    measured = truth + NOISE * rng.normal(size=truth.shape)
    predicted = draws + sigma[:, None] * rng.normal(size=draws.shape)
    flat = train.reshape(len(train), -1)
    nearest = flat[np.argmin(np.sum((flat[:, pixels] - y) ** 2, axis=1))]

    def coverage(values, draws):
        low, high = np.quantile(draws, [0.05, 0.95], axis=0)
        return np.mean(((values >= low) & (values <= high))[hidden])

    def rmse(image):
        return np.sqrt(np.mean((image - truth)[hidden] ** 2))

    print(f"\nThe {len(hidden)} pixels that were not observed:")
    print(
        f"  new measurements in their 90 % interval  {coverage(measured, predicted):5.0%}"
    )
    print(f"  truth in the image's own 90 % interval   {coverage(truth, draws):5.0%}")
    print("    (lower where the truth has detail that the components leave out)")
    print(f"  RMSE of the posterior mean               {rmse(draws.mean(axis=0)):.3f}")
    print(f"  RMSE of the prior mean                   {rmse(mean):.3f}")
    print(f"  RMSE of the best-matching training image {rmse(nearest):.3f}")


def draw_figure(path, truth, pixels, y, draws):
    """Truth, observation, posterior mean, nine draws, and the pixels' sd."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    observed = np.full(64, np.nan)
    observed[pixels] = y
    shown = np.linspace(0, len(draws) - 1, 9).astype(int)
    figure = plt.figure(figsize=(11, 4.4), layout="constrained")
    left, right = figure.subfigures(1, 2, width_ratios=[4, 3.1])
    spread = draws.std(axis=0)
    panels = [
        ("truth", truth, "gray_r", 0.0, 1.0),
        (f"observed: {len(pixels)} noisy pixels", observed, "gray_r", 0.0, 1.0),
        ("posterior mean", draws.mean(axis=0), "gray_r", 0.0, 1.0),
        ("posterior sd", spread, "magma", 0.0, float(spread.max())),
    ]
    axes = left.subplots(2, 2)
    for axis, (title, image, colours, low, high) in zip(axes.flat, panels, strict=True):
        axis.set_facecolor("#cfe3f5")
        shown_image = axis.imshow(
            image.reshape(8, 8), cmap=colours, vmin=low, vmax=high
        )
        axis.set_title(title, fontsize=10)
        if colours == "magma":
            left.colorbar(shown_image, ax=axis, shrink=0.8)
    right.suptitle("nine posterior draws", fontsize=10)
    for axis, index in zip(right.subplots(3, 3).flat, shown, strict=True):
        axis.imshow(draws[index].reshape(8, 8), cmap="gray_r", vmin=0.0, vmax=1.0)
        axis.set_xticks([])
        axis.set_yticks([])
    for axis in axes.flat:
        axis.set_xticks([])
        axis.set_yticks([])
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)
    plt.close(figure)


def main(args):
    start = time.perf_counter()

    def lap(text):
        print(f"[{time.perf_counter() - start:5.1f} s] {text}", flush=True)

    # -- learn the prior -----------------------------------------------------------
    train, unseen = load_images()
    images = jittered(train)
    mean, components = principal_components(images, args.num_components)
    rng = np.random.default_rng(2)
    codes = (images.reshape(len(images), -1) - mean) @ components.T
    codes = codes + 0.1 * rng.normal(size=codes.shape)  # finer than this is not learned
    lap(f"learning a prior from {len(codes):,} codes of {args.num_components} numbers")
    density, history = rtk.fit(
        jr.key(0),
        codes.astype(np.float32),
        num_steps=args.train_steps,
        # without a number `fit` looks for one: 16 as well, in more time than all the rest
        training=rtk.Training(standardise="global", num_components=16),
        progress_bar=False,
    )
    losses = history["validation_loss"]
    lap(f"learned: validation loss {losses[0]:.3f} -> {losses.min():.3f}")

    # -- observe a part of an unseen digit -----------------------------------------
    truth = unseen[args.digit].ravel()
    pixels = np.sort(rng.choice(64, args.num_pixels, replace=False))
    hidden = np.setdiff1d(np.arange(64), pixels)
    y = truth[pixels] + NOISE * rng.normal(size=len(pixels))

    # -- the model and its posterior -----------------------------------------------
    model = make_model(
        rtk.LearnedPrior(density), jnp.asarray(mean), jnp.asarray(components)
    )
    kernel = rtk.RTKReplicaExchange(model, num_levels=args.num_levels)
    mcmc = MCMC(
        kernel,
        num_warmup=args.num_warmup,
        num_samples=args.num_samples,
        num_chains=args.num_chains,
        chain_method="vectorized",
        progress_bar=False,
    )
    mcmc.run(jr.key(1), pixels, jnp.asarray(y))
    by_chain = mcmc.get_samples(group_by_chain=True)
    jax.block_until_ready(by_chain)
    lap(f"{args.num_chains} chains of {args.num_samples} draws")

    data = az.from_numpyro(mcmc)
    print(f"\nRTKReplicaExchange is {kernel.guarantee}.")
    print(az.summary(data, var_names=["code", "sigma"]).to_string())
    print(f"\n{rtk.diagnose(mcmc)}")
    acceptance = float(data.sample_stats["acceptance_rate"].mean())
    rhat, ess = worst_rhat_and_ess([by_chain["code"], by_chain["sigma"][..., None]])
    print(
        f"\nacceptance between levels {acceptance:.2f}, worst R-hat {rhat:.3f}, least "
        f"ESS {ess:.0f}"
    )
    if rhat > RHAT_LIMIT or not np.isfinite(rhat):
        print(
            f"R-hat is above {RHAT_LIMIT}: the chains have NOT mixed, do not use these "
            "draws.\nTake more --num-samples and --num-warmup, or more --num-levels."
        )
    else:
        print(f"R-hat is below {RHAT_LIMIT}: the chains agree.")

    # -- against the truth ---------------------------------------------------------
    draws = np.asarray(mcmc.get_samples()["image"])
    sigma = np.asarray(mcmc.get_samples()["sigma"])
    report_truth(draws, sigma, truth, hidden, mean, train, pixels, y, rng)

    # -- the paper's annealed runs: independent draws with weights ------------------
    raw_kernel = rtk.RTKMALA(model, corrected=False, num_segments=args.num_levels)
    raw = MCMC(
        raw_kernel,
        num_warmup=args.num_warmup // 2,
        num_samples=args.num_samples,
        num_chains=args.num_chains,
        chain_method="vectorized",
        progress_bar=False,
    )
    raw.run(jr.key(2), pixels, jnp.asarray(y))
    log_weight = raw.get_extra_fields()["log_weight"]
    pareto_k = rtk.pareto_k(log_weight)
    size = float(rtk.weighted_sample_size(log_weight))
    verdict = "use" if pareto_k < PARETO_LIMIT else "do NOT use"
    print(f"\nRTKMALA(corrected=False) is {raw_kernel.guarantee}.")
    print(
        f"Pareto k of the weights {pareto_k:.2f} ({verdict} weighted means; the limit "
        f"is {PARETO_LIMIT}); {log_weight.size} draws are worth {size:.0f}."
    )
    resampled = rtk.importance_resample(
        jr.key(3), raw.get_samples(), log_weight, log_weight.size
    )
    print(
        f"median of sigma: exact chain {np.median(sigma):.3f}, weighted "
        f"{float(jnp.median(resampled['sigma'])):.3f}, unweighted "
        f"{float(jnp.median(raw.get_samples()['sigma'])):.3f}"
    )

    draw_figure(args.output, truth, pixels, y, draws)
    lap(f"picture in {args.output}")


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--num-warmup", type=int, default=300)
    parser.add_argument("--num-samples", type=int, default=1000)
    parser.add_argument("--num-chains", type=int, default=4)
    parser.add_argument("--num-levels", type=int, default=14)
    parser.add_argument("--train-steps", type=int, default=1200)
    parser.add_argument("--num-components", type=int, default=24)
    parser.add_argument("--num-pixels", type=int, default=20)
    parser.add_argument("--digit", type=int, default=7, help="0 to 199")
    parser.add_argument(
        "--output",
        type=pathlib.Path,
        default=pathlib.Path(__file__).parent / "output" / "quickstart.png",
    )
    return parser.parse_args()


if __name__ == "__main__":
    main(parse_args())
