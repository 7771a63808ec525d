"""What does an energy from a score cost, and is it better than ``fit`` on the draws?

    python -m benchmarks.densities.distilled          # all rows
    python -m benchmarks.densities.distilled --quick  # does it run

Teachers: the exact score of a mixture (three modes in 2 dimensions, six in 10), a score
network that was fitted to 12,000 rows of the latter, and the network of the page "I have a
trained diffusion model" (two moons). Rows are 12,000 draws of the teacher's own.
``divergence`` is ``rtk.distill``; ``noise`` has the normalisation from the rows' noise
instead of the score's divergence; ``fit`` is ``rtk.fit`` on the same rows. ``base``: one
Gaussian, so that it does not do the work, or as chosen by default.

Of mixtures: standard deviation of the log density's error (nats) on 4,000 fresh exact
draws, total variation of the modes' weights (by reweighting these draws), total mass by
the same. Of moons: total variation of bins of width .1 from the law of the moons, and
that of the network's own draws; total mass by quadrature. For all: divergence and drift
of the report, the best step, and CPU time with compilation.
"""

import argparse
import pathlib
import re
import time
import warnings
from unittest import mock

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jax.scipy.stats import multivariate_normal
from sklearn.datasets import make_moons

import numpyro_rtk as rtk
from benchmarks.shared.tables import Table
from numpyro_rtk.draw import draw
from numpyro_rtk.training import fit as fit_module
from numpyro_rtk.training.losses import (
    dual_score_matching,
    slopes_of_score,
    variance_exploding,
)

PAGE = pathlib.Path(__file__).parents[2] / "docs" / "trained-network.md"
EDGES = np.linspace(-1.6, 2.7, 44), np.linspace(-1.2, 1.7, 30)
METHODS = (
    ("divergence", "one"),
    ("noise", "one"),
    ("fit", "one"),
    ("divergence", "chosen"),
    ("fit", "chosen"),
)
COLUMNS = (
    "teacher",
    "by",
    "base",
    "sd of error",
    "TV",
    "mass",
    "divergence",
    "drift",
    "steps",
    "CPU seconds",
)


class ScoreOnly(eqx.Module):
    """A mixture without its energy."""

    of: rtk.GaussianMixture

    @property
    def event_shape(self):
        return self.of.event_shape

    def score(self, x, t):
        return self.of.score(x, t)


class ByNoise(eqx.Module):
    """The first term by the teacher's score, the second as in ``fit``."""

    teacher: eqx.Module

    def __call__(self, model, z0, e, log_r):
        r = jnp.exp(log_r)
        y = z0 + r * e
        noise, _ = slopes_of_score(self.teacher, model, y, log_r, jnp.ones_like(y))
        by_point = jax.grad(variance_exploding, argnums=1)(model, y, log_r)
        plain = lambda target: jnp.sum((r * by_point - target) ** 2) / e.size
        # the control variate of the first term goes with it
        by_point_0 = jax.grad(variance_exploding, argnums=1)(model, z0, log_r)
        share = 2.0 / (1.0 + (r / 0.3) ** 2) * r * jnp.sum(e * by_point_0) / e.size
        whole = dual_score_matching(model, z0, e, log_r)
        return whole - plain(e) - share + plain(noise)


def small_mixture(dim: int) -> rtk.GaussianMixture:
    """Unequal weights and widths."""
    if dim == 2:
        covariances = [0.04 * np.eye(2), [[0.5, 0.2], [0.2, 0.3]], np.eye(2)]
        means = [[-3.0, 0.0], [2.0, 1.0], [1.0, -3.0]]
        return rtk.GaussianMixture([0.5, 0.35, 0.15], means, covariances)
    rng = np.random.default_rng(3)
    means, weights = rng.normal(size=(6, dim)), rng.dirichlet(np.full(6, 3.0))
    widths = rng.uniform(0.2, 0.45, 6)
    return rtk.GaussianMixture(weights, means, [w**2 * np.eye(dim) for w in widths])


def against_mixture(truth: rtk.GaussianMixture, model) -> tuple[float, float, float]:
    """Standard deviation of the error, total variation of the weights, mass."""
    x = truth.sample(jr.key(2), (4000,))
    off = np.asarray(model.log_density(x, 0.0) - truth.log_density(x, 0.0), float)
    parts = zip(truth.weights, truth.means, truth.covariances, strict=True)
    logs = [jnp.log(w) + multivariate_normal.logpdf(x, m, c) for w, m, c in parts]
    shares = np.asarray(jax.nn.softmax(jnp.stack(logs), axis=0))
    found = (shares * np.exp(off)).mean(axis=1)
    tv = 0.5 * np.abs(found / found.sum() - shares.mean(axis=1)).sum()
    return off.std(), tv, np.exp(off).mean()


def bins(x: np.ndarray, weights: np.ndarray | None = None) -> np.ndarray:
    found = np.histogram2d(*np.asarray(x).T, bins=EDGES, weights=weights)[0]
    return found / found.sum()


def against_moons(truth: np.ndarray, model) -> tuple[float, float, float]:
    step = 0.025
    sides = [np.arange(edges[0], edges[-1], step) + step / 2 for edges in EDGES]
    x = np.stack(np.meshgrid(*sides, indexing="ij"), axis=-1).reshape(-1, 2)
    mass = np.exp(np.asarray(model.log_density(jnp.asarray(x), 0.0), float)) * step**2
    return np.nan, 0.5 * np.abs(bins(x, mass) - truth).sum(), mass.sum()


def page_score() -> eqx.Module:
    """The network of the page, trained as there."""
    names = {"__name__": "page"}
    for code in re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)[:2]:
        exec(compile(code, PAGE.name, "exec"), names)
    return names["score"]


def learn(by: str, teacher, rows, options):
    """Model, report and seconds of CPU."""
    start = time.process_time()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        if by == "fit":
            model, history = rtk.fit(jr.key(0), rows, **options)
            return model, history, None, time.process_time() - start
        loss = ByNoise if by == "noise" else fit_module.ScoreDistillation
        with mock.patch.object(fit_module, "ScoreDistillation", loss):
            found = rtk.distill(jr.key(0), teacher, rows, **options)
    return *found, found.error, time.process_time() - start


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = ("d = 2", "d = 10", "d = 10, network", "moons, network")
    parser.add_argument("--only", nargs="+", choices=names, default=list(names))
    parser.add_argument("--num-steps", type=int, default=2000)
    parser.add_argument("--bases", nargs="+", default=["one", "chosen"])
    parser.add_argument("--quick", action="store_true")
    args = parser.parse_args()
    num_rows = 12_000
    if args.quick:
        args.only, args.num_steps, num_rows = ["d = 2"], 250, 2000
    table = Table("distilled", COLUMNS, more=("scikit-learn",))
    for name in args.only:
        if name == "moons, network":
            teacher = page_score()
            law = bins(make_moons(1_000_000, noise=0.1, random_state=5)[0])
            compare = lambda model, law=law: against_moons(law, model)
        else:
            truth = small_mixture(2 if name == "d = 2" else 10)
            teacher = ScoreOnly(truth)
            compare = lambda model, truth=truth: against_mixture(truth, model)
        one = rtk.Training(num_components=1)
        if name == "d = 10, network":
            rows = np.asarray(truth.sample(jr.key(1), (num_rows,)))
            network = rtk.ScoreMLP((10,), key=jr.key(8))
            teacher, _ = rtk.fit(
                jr.key(7), rows, network=network, training=one, progress_bar=False
            )
        blocks = [draw(jr.key(i), teacher, (2000,)) for i in range(num_rows // 2000)]
        rows = np.concatenate(blocks)
        if name == "moons, network":
            tv = 0.5 * np.abs(bins(rows) - law).sum()
            table.add(name, "its draws", "", "", tv, "", "", "", "", "")
        for by, base in [pair for pair in METHODS if pair[1] in args.bases]:
            options = {"num_steps": args.num_steps, "progress_bar": False}
            options["training"] = one if base == "one" else None
            model, history, error, seconds = learn(by, teacher, rows, options)
            cost = ("", "") if error is None else (error.divergence, error.total_drift)
            best = int(history["best_step"])
            table.add(name, by, base, *compare(model), *cost, best, f"{seconds:.0f}")


if __name__ == "__main__":
    main()
