"""Images: bits per dimension against normalising flows and a mixture, and samples.

    python benchmarks/digits.py            # about ten minutes on two cores
    python benchmarks/digits.py --quick    # does it run: a minute, figures of no worth

scikit-learn's 1,797 digits, 8 by 8 pixels of 17 grey levels, with uniform noise on top
(dequantisation), 400 of them held out. All rivals see the same 1,397 images once, as they
are, and keep a part of them back to stop or to choose: the energies and the flows a tenth
(``fit``, and flowjax's ``fit_to_data`` with its own early stopping and the better of two
learning rates), the mixture 200 (number of components, kind of covariance and a floor of
the variances; then fitted to all).

Bits per dimension: minus the mean log density of the held-out images, over 64 log 2; an
upper bound of that of the grey levels. The mixture and the flows are normalised by
construction; an energy's integral is learned, and is estimated here by both directions of
work along the noise ladder (``rtk.check_prior``). ``corrected`` has it taken off.
"""

import argparse
import pathlib
import time
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from flowjax.bijections import RationalQuadraticSpline
from flowjax.distributions import Normal
from flowjax.flows import coupling_flow, masked_autoregressive_flow
from flowjax.train import fit_to_data
from sklearn.datasets import load_digits
from sklearn.mixture import GaussianMixture

import numpyro_rtk as rtk

SHAPE = (8, 8)
DIM = 64
NUM_HELD_OUT = 400
NUM_SHOWN = 40
ENERGIES = {
    "EnergyUNet": (
        lambda key, quick: rtk.EnergyUNet(
            SHAPE, channels=8, depth=2 if quick else 3, key=key
        ),
        {"num_steps": 3000, "batch_size": 128, "learning_rate": 0.01},
    ),
    "EnergyMLP": (
        lambda key, quick: rtk.EnergyMLP(SHAPE, key=key),
        {},
    ),
}
FLOWS = {
    "coupling spline flow": lambda key: coupling_flow(
        key,
        base_dist=Normal(jnp.zeros(DIM)),
        transformer=RationalQuadraticSpline(knots=8, interval=4),
    ),
    "masked autoregressive flow": lambda key: masked_autoregressive_flow(
        key, base_dist=Normal(jnp.zeros(DIM))
    ),
}
NORMALISED = (0.0, 0.0)  # by construction
LEARNING_RATES = (5e-4, 2e-3)  # the first is flowjax's default


class Result(NamedTuple):
    """Log densities of the held-out images, ``(n,)``, draws, and the log integral."""

    log_density: np.ndarray
    draws: np.ndarray
    log_integral: tuple[float, float] = NORMALISED
    note: str = ""


def images(seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    grey = load_digits().images.astype(float)
    grey = rng.permutation(grey) + rng.uniform(size=grey.shape)
    return grey[NUM_HELD_OUT:], grey[:NUM_HELD_OUT]


def energy(name: str, train, test, seed: int, quick: bool) -> Result:
    make, options = ENERGIES[name]
    if quick:
        options = {"num_steps": 250, "batch_size": 64}
    network = make(jr.key(seed + 1), quick)
    model, history = rtk.fit(
        jr.key(seed), train, network=network, progress_bar=False, **options
    )
    log_density = eqx.filter_jit(model.log_density)(jnp.asarray(test, jnp.float32), 0.0)
    note = f"best of {history['step'][-1]} steps: {history['best_step']}"
    if quick:  # without what takes long: the draws and the integral
        none = np.full((NUM_SHOWN, *SHAPE), np.nan)
        unknown = (np.nan, np.nan)
        return Result(np.asarray(log_density, float), none, unknown, note)
    draws = rtk.LearnedPrior(model).sample(jr.key(2), (NUM_SHOWN,))
    check = rtk.check_prior(model, test, training=train)
    print(check, flush=True)
    return Result(np.asarray(log_density, float), np.asarray(draws), check.offset, note)


def flow(name: str, train, test, seed: int, quick: bool) -> Result:
    flat = train.reshape(-1, DIM)
    mean, sd = flat.mean(axis=0), flat.std(axis=0)
    standard = lambda x: jnp.asarray((x.reshape(-1, DIM) - mean) / sd, jnp.float32)
    best: Any = (np.inf, None, "")
    for learning_rate in LEARNING_RATES[: 1 if quick else None]:
        start = FLOWS[name](jr.key(seed))
        fitted, losses = fit_to_data(
            jr.key(seed + 1),
            start,
            standard(train),
            learning_rate=learning_rate,
            max_epochs=2 if quick else 300,
            show_progress=False,
        )
        loss, epochs = min(losses["val"]), len(losses["val"])
        note = f"learning rate {learning_rate:g}, {epochs} epochs"
        best = min(best, (loss, fitted, note), key=lambda entry: entry[0])
    _, fitted, note = best
    log_density = np.asarray(fitted.log_prob(standard(test)), float) - np.log(sd).sum()
    draws = np.asarray(fitted.sample(jr.key(2), (NUM_SHOWN,))) * sd + mean
    return Result(log_density, draws.reshape(-1, *SHAPE), note=note)


def mixture(name: str, train, test, seed: int, quick: bool) -> Result:
    flat, asked = train.reshape(-1, DIM), test.reshape(-1, DIM)
    grid = [
        {"n_components": num, "covariance_type": kind, "reg_covar": floor}
        for kind in ("full", "tied", "diag")
        for num in ((1, 8) if quick else (1, 4, 8, 12, 16, 24, 32, 48, 64))
        for floor in (0.01, 0.1, 0.3)
    ]
    by_em = lambda options: GaussianMixture(**options, random_state=seed)
    score = lambda options: by_em(options).fit(flat[200:]).score(flat[:200])
    chosen = max(grid, key=score)
    fitted = by_em(chosen).fit(flat)
    draws = fitted.sample(NUM_SHOWN)[0].reshape(-1, *SHAPE)
    return Result(fitted.score_samples(asked), draws, note=str(chosen))


def show(name: str, result: Result, seconds: float) -> None:
    bits = -result.log_density / (DIM * np.log(2.0))
    value, error = result.log_integral
    integral = "normalised"
    if result.log_integral != NORMALISED:
        corrected = bits.mean() + value / (DIM * np.log(2.0))
        integral = (
            f"log integral {value:+.2f} +- {error:.2f}, corrected {corrected:.3f}"
        )
    print(
        f"{name}: {bits.mean():.3f} +- {bits.std() / len(bits) ** 0.5:.3f} bits per "
        f"dimension; {integral}; {seconds:.0f} s ({result.note})",
        flush=True,
    )


def draw_figure(path: pathlib.Path, test: np.ndarray, results: dict[str, Result]):
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    sheets = {"held-out data": test, **{n: r.draws for n, r in results.items()}}
    figure, axes = plt.subplots(1, len(sheets), figsize=(2.4 * len(sheets), 4.2))
    for axis, (name, sheet) in zip(axes, sheets.items(), strict=True):
        rows = sheet[:NUM_SHOWN].reshape(8, 5, *SHAPE)
        framed = np.pad(rows, [(0, 0), (0, 0), (1, 0), (1, 0)], constant_values=8.0)
        axis.imshow(
            framed.transpose(0, 2, 1, 3).reshape(8 * 9, 5 * 9),
            cmap="gray_r",
            vmin=0.0,
            vmax=17.0,
        )
        axis.set_title(name, fontsize=8)
        axis.set_axis_off()
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="+", help="some of the rivals, by name")
    parser.add_argument(
        "--output",
        type=pathlib.Path,
        default=pathlib.Path(__file__).parent / "output" / "digits.png",
    )
    args = parser.parse_args()
    train, test = images(args.seed)
    rivals = {
        "Gaussian mixture by EM": mixture,
        **dict.fromkeys(FLOWS, flow),
        **dict.fromkeys(ENERGIES, energy),
    }
    results = {}
    for name, run in rivals.items():
        if args.only and name not in args.only:
            continue
        start = time.perf_counter()
        results[name] = run(name, train, test, args.seed, args.quick)
        show(name, results[name], time.perf_counter() - start)
        jax.clear_caches()
    draw_figure(args.output, test, results)
    print(f"samples in {args.output}")


if __name__ == "__main__":
    main()
