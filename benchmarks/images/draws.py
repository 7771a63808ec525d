"""Images drawn from a trained score network: Fréchet distance against evaluations.

    python -m benchmarks.images.draws                            # half an hour on two cores
    python -m benchmarks.images.draws --quick  # a reduced form: three minutes
    python -m benchmarks.images.draws --mnist FOLDER  # MNIST, from its four files
    python -m benchmarks.images.draws --reuse --methods RTKMALA  # the networks of before

The image experiment of the RTK paper (Huang et al., NeurIPS 2024, arXiv 2405.16387) at the
size of a CPU: scikit-learn's digits of 8 by 8 pixels, each with 15 slightly turned and
moved copies, or MNIST. A U-Net learns the score (``rtk.fit``), in the full form another one
an energy; then all methods draw from the same network with as many evaluations of it.

``judge.py`` says what is measured. The floors are of as many training images (mean
and sd of 20 samples) and of as many held-out ones.

Solvers take, at each number of evaluations, the time grid (and the predictor-corrector its
signal-to-noise ratio) with the least Fréchet distance on other draws; the kernels of the
package are run as a user would run them (``ROWS``), and adapt in their warm-up.
"""

import argparse
import functools
import itertools
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np

import numpyro_rtk as rtk
from benchmarks.images.data import Images, load_digits, load_mnist
from benchmarks.images.judge import Judge
from benchmarks.shared import solvers
from benchmarks.shared.figures import NUM_SHOWN, curves, sheets
from benchmarks.shared.runs import draw as draw_by
from benchmarks.shared.solvers import random_key, solve
from benchmarks.shared.tables import OUTPUT, Table

Make = Callable[[Any], Any]


def mala(**options) -> Make:
    """Acceptance from scores: a score network has no energy."""
    inner = rtk.MALA(acceptance="simpson")
    return lambda density: rtk.RTKMALA(score=density, inner=inner, **options)


def uld(**options) -> Make:
    return lambda density: rtk.RTKULD(score=density, **options)


def published_mala(**options) -> Make:
    inner = rtk.MALA(num_leapfrog=1, acceptance="simpson")
    return lambda density: rtk.RTKMALA.as_published(
        score=density, inner=inner, **options
    )


def published_uld(**options) -> Make:
    return lambda density: rtk.RTKULD.as_published(score=density, **options)


# By evaluations. The paper's setting has 8 steps in each of 5 segments, at the smaller
# budgets fewer.
ROWS: dict[str, dict[int, Make]] = {
    "RTKMALA": {
        5: mala(num_segments=5, num_steps=0),
        10: mala(num_segments=7, num_steps=(1,)),
        20: mala(),
        40: mala(num_segments=25, num_steps=(7,)),
    },
    "RTKULD": {
        5: uld(num_segments=3, num_steps=(1,)),
        10: uld(num_segments=7, num_steps=(2,)),
        20: uld(),
        40: uld(num_segments=25, num_steps=(14,)),
    },
    "RTKMALA, paper's setting": {
        20: published_mala(num_steps=(2, 2, 1, 1, 1)),
        40: published_mala(num_steps=(4, 4, 3, 3, 3)),
        86: published_mala(),
    },
    "RTKULD, paper's setting": {
        20: published_uld(num_steps=(3, 3, 3, 3, 2)),
        40: published_uld(num_steps=(7, 7, 7, 7, 6)),
        46: published_uld(),
    },
}
ENERGY_ROWS: dict[str, dict[int, Make]] = {
    "RTKMALA": {
        10: lambda d: rtk.RTKMALA(score=d, num_segments=7, num_steps=(1,)),
        20: lambda d: rtk.RTKMALA(score=d),
    },
}
CORRECTOR = "predictor-corrector"
SOLVERS = {
    **{n: f for n, f in solvers.SOLVERS.items() if not n.startswith(CORRECTOR)},
    CORRECTOR: solvers.predictor_corrector,
}
SNRS = (0.08, 0.16, 0.3, 0.5, 0.8, 1.2)  # of the corrector
ENERGY_SOLVERS = ("DPM-Solver++ (2M)",)
LADDERS = (
    "uniform, T 3",
    "quadratic, T 3",
    *(
        f"{family}, T 3, least noise {least}"
        for family in ("log-SNR", "angle", "Karras")
        for least in (0.05, 0.1, 0.2, 0.3)
    ),
)
FEW_LADDERS = tuple(ladder for ladder in LADDERS if ladder.endswith("0.1"))
PIXEL_NOISE = 0.01  # many pixels at the edge never change
SHOWN_BUDGET = 20
COLUMNS = ("network", "method", "evaluations", "Fréchet", "classes TV", "setting")


class Size(NamedTuple):
    """What a run costs; ``ladders`` are those at T = 3 to choose from."""

    score_steps: int
    energy_steps: int
    batch_size: int
    budgets: tuple[int, ...]
    draws: int
    tuning_draws: int
    chains: int
    warmup: int
    ladders: tuple[str, ...]


ALL_BUDGETS = (5, 10, 20, 40, 46, 86)  # beyond 40 the paper's setting alone
SIZES = {
    ("digits", False): Size(4000, 2000, 256, ALL_BUDGETS, 2000, 500, 10, 50, LADDERS),
    ("digits", True): Size(500, 0, 128, (10, 20), 500, 250, 5, 20, FEW_LADDERS),
    ("MNIST", False): Size(4000, 2000, 64, ALL_BUDGETS, 1000, 250, 4, 30, LADDERS),
    ("MNIST", True): Size(200, 0, 32, (10, 20), 200, 100, 4, 10, FEW_LADDERS),
}


class Method(NamedTuple):
    """Draws ``(n, H, W)`` of a method, what each cost, and how it was set."""

    name: str
    evals: int
    draws: np.ndarray
    setting: str


def by_solver(model, name: str, budget: int, judge: Judge, size: Size) -> Method:
    """A solver on its best ladder, the corrector with its best signal-to-noise ratio."""
    segments = solvers.num_segments(name, budget)
    ladders = solvers.grids(segments)
    snrs = SNRS if name == CORRECTOR else (None,)

    def draw(ladder: str, snr: float | None, key: jax.Array) -> np.ndarray:
        times = jnp.asarray(ladders[ladder])
        options = {} if snr is None else {"snr": jnp.asarray(snr)}
        draws = solve(model, SOLVERS[name], times, options, key, size.tuning_draws)
        return np.asarray(draws)

    @functools.cache
    def error(candidate: tuple[str, float | None]) -> float:
        return judge.score(draw(*candidate, random_key(1)))[0]

    best = lambda ladders, snrs: min(itertools.product(ladders, snrs), key=error)
    # one after the other: ratio, ladder, horizon, and the ratio again
    _, snr = best(FEW_LADDERS[:1], snrs)
    ladder, _ = best(size.ladders, [snr])
    ends = [ladder.replace("T 3", end) for end in ("T 2", "T 3", "T 4")]
    ladder, _ = best(ends, [snr])
    _, snr = best([ladder], snrs)
    keys = jr.split(random_key(2), size.draws // size.tuning_draws)
    draws = np.concatenate([draw(ladder, snr, key) for key in keys])
    # two evaluations a segment, but for the last, or one
    evals = segments if segments == budget else 2 * segments - 1
    setting = ladder if snr is None else f"{ladder}, snr {snr}"
    return Method(name, evals, draws, setting)


def by_kernel(name: str, kernel, size: Size) -> Method:
    """A kernel of the package, as a user runs it."""
    draws, fields = draw_by(kernel, size.draws, random_key(2), size.chains, size.warmup)
    accepted = f"inner steps accepted {np.mean(fields['accept_prob']):.2f}"
    return Method(name, int(fields["num_score_evals"][0]), draws, accepted)


def methods(
    models: Mapping[str, Any], judge: Judge, size: Size, wanted: Callable[[str], bool]
) -> Iterator[tuple[str, int, Method]]:
    """``(network, budget, method)``, one after another."""
    rows = {
        "ScoreUNet": (SOLVERS, ROWS, (5, 10, 20, 40)),
        "EnergyUNet": (ENERGY_SOLVERS, ENERGY_ROWS, (10, 20)),
    }
    for network, model in models.items():
        names, kernels, budgets = rows[network]
        for name in filter(wanted, names):
            for budget in filter(size.budgets.__contains__, budgets):
                yield network, budget, by_solver(model, name, budget, judge, size)
        for name in filter(wanted, kernels):
            for budget in filter(size.budgets.__contains__, kernels[name]):
                kernel = kernels[name][budget](model)
                yield network, budget, by_kernel(name, kernel, size)


def learned(images: Images, size: Size, name: str, reuse: bool) -> dict[str, Any]:
    """The networks, by class; kept in ``output`` for ``reuse``."""
    shape = images.train.shape[1:]
    rng = np.random.default_rng(1)
    rows = images.train + PIXEL_NOISE * rng.normal(size=images.train.shape)
    models = {}
    for network, num_steps, batch_size in (
        (rtk.ScoreUNet(shape, key=jr.key(0)), size.score_steps, size.batch_size),
        (
            rtk.EnergyUNet(shape, channels=8, key=jr.key(0)),
            size.energy_steps,
            size.batch_size // 2,
        ),
    ):
        kind = type(network).__name__
        path = OUTPUT / f"{name}_{kind}.rtk"
        if not num_steps:
            continue
        if reuse and path.exists():
            models[kind] = rtk.load(path)
            continue
        models[kind], history = rtk.fit(
            jr.key(1),
            rows.astype(np.float32),
            network=network,
            num_steps=num_steps,
            batch_size=batch_size,
            # a mixture by EM on so many rows takes longer than the rest
            training=rtk.Training(standardise="global", num_components=1),
            progress_bar=False,
        )
        rtk.save(path, models[kind])
        print(
            f"{kind}: {type(models[kind].base).__name__}, validation loss "
            f"{min(history['validation_loss']):.4f} at step {history['best_step']} of "
            f"{history['step'][-1]}, {history['wall_time'][-1]:.0f} s",
            flush=True,
        )
    return models


def run(
    quick: bool,
    mnist: pathlib.Path | None = None,
    reuse: bool = False,
    beginnings: Sequence[str] = ("",),
) -> None:
    """Table ``images``, figures ``images_frechet`` and ``images_samples``.

    Of MNIST their names begin with ``images_mnist``.
    """
    images = load_digits() if mnist is None else load_mnist(mnist)
    name = "images" if mnist is None else "images_mnist"
    networks = f"{name}_quick" if quick else name
    size, judge = SIZES[images.name, quick], Judge(images)
    print(f"classifier: {judge.accuracy:.3f} of the held-out images", flush=True)
    models = learned(images, size, networks, reuse)
    table = Table(name, COLUMNS, more=("scikit-learn",))
    floor, spread = judge.floor(images.train, size.draws)
    spread = f"sd {spread[0]:.3f}, {spread[1]:.3f}"
    table.add("-", "training images", "-", *floor, spread)
    table.add("-", "held-out images", "-", *judge.floor(images.test, size.draws)[0], "")
    rng = np.random.default_rng(4)
    shown = {"training images": rng.permutation(images.train)}
    wanted = lambda method: method.startswith(tuple(beginnings))
    for network, budget, method in methods(models, judge, size, wanted):
        scores = judge.score(method.draws)
        table.add(network, method.name, method.evals, *scores, method.setting)
        if budget == SHOWN_BUDGET:
            title = f"{method.name}\n{network}, {method.evals} evaluations"
            # the first draws are all of one chain
            shown[title] = rng.permutation(method.draws)[:NUM_SHOWN]
    rows = [row for row in table.records if row["network"] in models]
    measures = dict.fromkeys(COLUMNS[3:5], "log")
    floors = dict.fromkeys(models, dict(zip(measures, floor, strict=True)))
    curves(
        f"{name}_frechet", rows, "network", "method", "evaluations", measures, floors
    )
    sheets(f"{name}_samples", shown)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="a reduced form")
    parser.add_argument("--mnist", type=pathlib.Path, help="folder of MNIST's files")
    parser.add_argument("--reuse", action="store_true", help="networks of the last run")
    parser.add_argument("--methods", nargs="+", default=[""], help="their beginnings")
    args = parser.parse_args()
    try:
        run(args.quick, args.mnist, args.reuse, args.methods)
    except FileNotFoundError as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
