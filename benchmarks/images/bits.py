"""Images: bits per dimension against normalising flows and a mixture, and samples.

    python -m benchmarks.images.bits          # half an hour on two cores
    python -m benchmarks.images.bits --quick  # does it run: a minute, figures of no worth

scikit-learn's 1,797 digits, 8 by 8 pixels of 17 grey levels, with uniform noise on top
(dequantisation), 400 of them held out. All rivals see the same 1,397 images once, as they
are, and keep a tenth of them back to stop or to choose: the energies by ``fit``, the flows
and the mixture as ``learners.py`` says, the flows with two more learning rates.
"logit": of the same images on the scale that takes 0 to 17 to all numbers, as
``fit(..., support=interval(0, 17))`` does, with the density of the images themselves.

Bits per dimension: minus the mean log density of the held-out images, over 64 log 2; an
upper bound of that of the grey levels. The mixture and the flows are normalised by
construction; an energy's integral is learned, and is estimated here by both directions of
work along the noise ladder (``rtk.check_prior``). ``corrected`` has it taken off.
"""

import argparse
import time
from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.random as jr
import numpy as np
from numpyro.distributions import biject_to, constraints
from numpyro.distributions.transforms import IdentityTransform
from sklearn.datasets import load_digits

import numpyro_rtk as rtk
from benchmarks.shared.figures import NUM_SHOWN, sheets
from benchmarks.shared.learners import FLOWS, LEARNING_RATES, Learned, flow, mixture
from benchmarks.shared.tables import Table, with_error

SHAPE = (8, 8)
DIM = 64
SUPPORT = constraints.interval(0.0, 17.0)  # of a grey level with its noise
NUM_HELD_OUT = 400
COLUMNS = (
    "density",
    "bits per dimension",
    "se",
    "log integral",
    "corrected",
    "s",
    "note",
)
ENERGIES = {
    "EnergyUNet": (
        lambda key: rtk.EnergyUNet(SHAPE, channels=8, key=key),
        {"num_steps": 3000, "batch_size": 128, "learning_rate": 0.01},
    ),
    "EnergyMLP": (lambda key: rtk.EnergyMLP(SHAPE, key=key), {}),
    "EnergyMLP, logit": (
        lambda key: rtk.EnergyMLP(SHAPE, key=key),
        {"support": SUPPORT},
    ),
}


class Result(NamedTuple):
    """Log densities of the held-out images, ``(n,)``, draws, and the log integral.

    ``log_integral``: with its standard error; 0 and 0 by construction, NaN where it was
    not estimated.
    """

    log_density: np.ndarray
    draws: np.ndarray
    log_integral: tuple[float, float]
    note: str


def images(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """To learn from and held out, ``(n, 8, 8)``."""
    rng = np.random.default_rng(seed)
    grey = load_digits().images.astype(float)
    grey = rng.permutation(grey) + rng.uniform(size=grey.shape)
    return grey[NUM_HELD_OUT:], grey[:NUM_HELD_OUT]


def energy(name: str, train, test, seed: int, quick: bool) -> Result:
    make, options = ENERGIES[name]
    if quick:
        options = {**options, "num_steps": 250, "batch_size": 64}
    model, history = rtk.fit(
        jr.key(seed),
        train,
        network=make(jr.key(seed + 1)),
        progress_bar=False,
        **options,
    )
    prior = rtk.LearnedPrior(model)
    log_density = np.asarray(jax.jit(prior.log_prob)(test.astype(np.float32)), float)
    base = type(model.base).__name__
    note = f"{base}; best of {history['step'][-1]} steps: {history['best_step']}"
    if quick:  # without what takes long: the draws and the integral
        none = np.full((NUM_SHOWN, *SHAPE), np.nan)
        return Result(log_density, none, (np.nan, np.nan), note)
    draws = prior.sample(jr.key(2), (NUM_SHOWN,))
    check = rtk.check_prior(model, test, training=train)
    print(check, flush=True)
    return Result(log_density, np.asarray(draws), check.offset, note)


def normalised(learn, train, test, seed: int, quick: bool, logit=False) -> Result:
    """A rival; ``learn`` is ``(rows, seed, quick) -> Learned``."""
    scale = biject_to(SUPPORT) if logit else IdentityTransform()
    unbounded = lambda x: np.asarray(scale.inv(x.reshape(-1, DIM)), float)
    fitted: Learned = learn(unbounded(train), seed, quick)
    draws = np.asarray(scale(fitted.sample(NUM_SHOWN))).reshape(-1, *SHAPE)
    z = unbounded(test)
    jacobian = np.sum(scale.log_abs_det_jacobian(z, scale(z)), axis=1)
    return Result(fitted.log_density(z) - jacobian, draws, (0.0, 0.0), fitted.note)


def by_em(rows: np.ndarray, seed: int, quick: bool) -> Learned:
    components = (1, 8) if quick else (1, 4, 8, 12, 16, 20)
    floors = (1e-1,) if quick else (1e-2, 1e-1, 3e-1)
    return mixture(rows, seed, components=components, floors=floors)


def by_flow(name: str, rows: np.ndarray, seed: int, quick: bool) -> Learned:
    if quick:
        return flow(name, rows, seed, learning_rates=(2e-3,), max_epochs=2)
    return flow(name, rows, seed, learning_rates=(*LEARNING_RATES, 1e-2, 2e-2))


LEARN = {
    "Gaussian mixture by EM": by_em,
    **{name: partial(by_flow, name) for name in FLOWS},
}
RIVALS = {
    **{name: partial(normalised, learn) for name, learn in LEARN.items()},
    **{
        f"{name}, logit": partial(normalised, learn, logit=True)
        for name, learn in LEARN.items()
    },
    **{name: partial(energy, name) for name in ENERGIES},
}


QUICK = ("coupling spline flow, logit", "EnergyMLP, logit")


def row(name: str, result: Result, seconds: float) -> tuple[str | float, ...]:
    per_bit = DIM * np.log(2.0)
    bits = -result.log_density / per_bit
    value, error = result.log_integral
    integral = with_error(value, error, 2) if error else f"{value:g}"
    if np.isnan(value):
        integral = "not estimated"
    return (
        name,
        bits.mean(),
        bits.std() / len(bits) ** 0.5,
        integral,
        bits.mean() + value / per_bit,
        f"{seconds:.0f}",
        result.note,
    )


def run(quick: bool, seed: int = 0, only: Sequence[str] | None = None) -> None:
    """The table, and a sheet of samples in ``image_bits.png``."""
    only = only or (QUICK if quick else tuple(RIVALS))
    train, test = images(seed)
    table = Table("image_bits", COLUMNS, more=("flowjax", "scikit-learn"))
    results = {}
    for name in only:
        start = time.perf_counter()
        results[name] = RIVALS[name](train, test, seed, quick)
        table.add(*row(name, results[name], time.perf_counter() - start))
        jax.clear_caches()
    drawn = {"held-out data": test, **{n: r.draws for n, r in results.items()}}
    sheets("image_bits", {n: x / SUPPORT.upper_bound for n, x in drawn.items()})


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="+", choices=RIVALS)
    args = parser.parse_args()
    run(args.quick, args.seed, args.only)


if __name__ == "__main__":
    main()
