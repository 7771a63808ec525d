"""Posteriors of the contest that are not mixtures under a linear measurement.

    python -m benchmarks.posteriors.problems sensors labels

makes the reference runs of these two, an hour or so each.

Each is a :class:`problem.Problem` with its truth in closed form or by quadrature, but for
two (sensors and labels), which have a reference: long runs of RTKReplicaExchange and of
tempered SMC, kept in ``benchmarks/output/NAME_reference.npz`` and made when they are first
asked for. What the two disagree by is printed, and is the error that cannot be told apart
from none.
"""

import argparse
from collections.abc import Callable
from functools import cache, partial
from itertools import permutations
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from scipy.integrate import quad
from scipy.special import softmax
from scipy.stats import entropy, multivariate_normal, norm
from sklearn.cluster import KMeans
from sklearn.datasets import load_digits
from sklearn.mixture import GaussianMixture

import numpyro_rtk as rtk
from benchmarks.posteriors.problem import Problem, factor_model, linear_problem
from benchmarks.posteriors.rivals.plain import exchange
from benchmarks.posteriors.rivals.tempering import tempered_smc
from benchmarks.shared.known_posteriors import condition
from benchmarks.shared.tables import OUTPUT


def gaussian_problem(loc, scale, log_likelihood, error, **facts) -> Problem:
    """Independent normal priors and any log likelihood of the vector."""
    loc, scale = np.asarray(loc, float), np.asarray(scale, float)
    prior = rtk.GaussianMixture([1.0], [loc], [np.diag(scale**2)], standardise=True)
    return Problem(
        model=factor_model(prior, log_likelihood),
        args=(),
        dim=len(loc),
        draw_prior=prior.sample,
        log_prior=lambda x: prior.log_density(x, 0.0),
        log_likelihood=log_likelihood,
        error=error,
        prior=prior,
        **facts,
    )


# -- in closed form ------------------------------------------------------------------


def _well(x):
    """Log density of a double well's first coordinate, up to its constant."""
    return -(x**4) + 6.0 * x**2 + 0.5 * x


def many_well(dim: int) -> Problem:
    """dim / 2 independent double wells, 2^(dim/2) modes (Noe et al., Science 2019).

    The barrier between the two sides of a well is 8 to 10 nats, their odds 1 to 5.2. The
    prior is N(0, 4 I). Error: total variation of a well's two sides, mean over wells.
    """
    mass = [quad(lambda x: np.exp(_well(x)), *ends)[0] for ends in ((-6, 0), (0, 6))]
    share = mass[1] / sum(mass)
    moments = [
        quad(lambda x, p=p: x**p * np.exp(_well(x)), -6, 6)[0] / sum(mass)
        for p in (1, 2)
    ]
    log_prior = lambda x: jnp.sum(dist.Normal(0.0, 2.0).log_prob(x))

    def log_likelihood(x):
        first, second = x[0::2], x[1::2]
        return jnp.sum(_well(first)) - 0.5 * jnp.sum(second**2) - log_prior(x)

    def error(x):
        return float(np.abs(np.mean(x[:, 0::2] > 0, axis=0) - share).mean())

    wells = dim // 2
    return gaussian_problem(
        np.zeros(dim),
        np.full(dim, 2.0),
        log_likelihood,
        error,
        mean=np.tile([moments[0], 0.0], wells),
        sd=np.tile([np.sqrt(moments[1] - moments[0] ** 2), 1.0], wells),
        log_evidence=wells * float(np.log(sum(mass) * np.sqrt(2.0 * np.pi))),
    )


def funnel(dim: int = 10) -> Problem:
    """Neal's funnel (2003): v ~ N(0, 9), then dim - 1 values ~ N(0, exp(v)); one mode.

    Written as a broad Gaussian prior, N(0, 9) and N(0, 30^2), and a factor; sites without
    a learned prior, so the kernel's path is ``"gaussian"``. Error: total variation of v
    from its law on 20 cells of equal probability.
    """
    loc, scale = np.zeros(dim), np.append(3.0, np.full(dim - 1, 30.0))
    edges = 3.0 * norm.ppf(np.arange(1, 20) / 20.0)

    def log_likelihood(x):
        given_v = dist.Normal(0.0, jnp.exp(0.5 * x[0])).log_prob(x[1:])
        return jnp.sum(given_v - dist.Normal(0.0, 30.0).log_prob(x[1:]))

    def model():
        prior = dist.Normal(jnp.asarray(loc), jnp.asarray(scale)).to_event(1)
        x = numpyro.sample("x", prior)
        numpyro.factor("likelihood", log_likelihood(x))

    def error(x):
        shares = np.bincount(np.searchsorted(edges, x[:, 0]), minlength=20) / len(x)
        return float(0.5 * np.abs(shares - 0.05).sum())

    problem = gaussian_problem(
        loc,
        scale,
        log_likelihood,
        error,
        mean=loc,
        sd=np.append(3.0, np.full(dim - 1, np.exp(2.25))),
        log_evidence=0.0,
    )
    return problem._replace(model=model, options={"path": "gaussian"})


def digits(num_components: int = 40, noise_sd: float = 1.0, seed: int = 0) -> Problem:
    """In-painting: the lower half of an 8 x 8 digit, given its upper half with noise.

    The prior is a mixture fitted by EM to 1,397 of scikit-learn's digits (17 grey levels,
    full covariances with a floor of 1), the image that of the other 400 whose posterior
    over the components has the largest entropy. Closed form, d = 64. Components with
    less than .1 % of the posterior are not told apart in the error.
    """
    rng = np.random.default_rng(seed)
    images = rng.permutation(load_digits().data.astype(float))
    fitted = GaussianMixture(num_components, reg_covar=1.0, random_state=seed)
    fitted.fit(images[400:])
    prior = rtk.GaussianMixture(
        fitted.weights_, fitted.means_, fitted.covariances_, standardise=True
    )
    design = np.eye(64)[:32]
    data = images[:400, :32] + noise_sd * rng.normal(size=(400, 32))
    seen = [
        multivariate_normal(m[:32], c[:32, :32] + noise_sd**2 * np.eye(32)).logpdf(data)
        for m, c in zip(fitted.means_, fitted.covariances_, strict=True)
    ]
    shares = softmax(np.log(fitted.weights_) + np.transpose(seen), axis=1)
    best = condition(prior, design, noise_sd, data[entropy(shares, axis=1).argmax()])
    alive = best.weights > 1e-3
    told_apart = best._replace(
        weights=best.weights[alive] / best.weights[alive].sum(),
        means=best.means[alive],
        covariances=best.covariances[alive],
    )
    return linear_problem(told_apart, n=50_000)


# -- with a reference ----------------------------------------------------------------


@cache
def labels(num_components: int = 4, num_data: int = 100, seed: int = 0) -> Problem:
    """A mixture model whose components change places: K! = 24 modes of equal weight.

    y ~ sum_k softmax(w)_k N(m_k, s_k), with m_k ~ N(0, 3), w_k ~ N(0, 1) and log s_k ~
    N(log .6, .4): 12 dimensions. Error: the larger of two total variations. Of the shares
    of the 24 orders of the means from 1/24 (of n independent draws 1.95 / sqrt(n)), which
    whatever treats all labels alike has right; and of the components in that order from
    the reference, over 8 cells of equal probability, mean over the 12 coordinates.
    """
    rng = np.random.default_rng(seed)
    true_means = np.linspace(-3.5, 3.5, num_components)
    data = rng.choice(true_means, num_data) + 0.6 * rng.normal(size=num_data)
    data = jnp.asarray(data)[:, None]
    ones = np.ones(num_components)
    loc = np.concatenate([0.0 * ones, 0.0 * ones, np.log(0.6) * ones])
    scale = np.concatenate([3.0 * ones, ones, 0.4 * ones])

    def log_likelihood(x):
        means, weights, log_sds = x.reshape(3, num_components)
        by_part = jax.nn.log_softmax(weights) + dist.Normal(
            means, jnp.exp(log_sds)
        ).log_prob(data)
        return jnp.sum(jax.nn.logsumexp(by_part, axis=1))

    problem = gaussian_problem(loc, scale, log_likelihood, lambda x: np.nan)
    found = reference("labels", problem, budget=8e6)
    orders = np.array(list(permutations(range(num_components))))
    places = num_components ** np.arange(num_components)

    def in_order(x):
        x = x.reshape(len(x), 3, num_components)
        order = np.argsort(x[:, 0], axis=1)
        return order, np.take_along_axis(x, order[:, None], axis=2).reshape(len(x), -1)

    draws = np.concatenate(found.draws).astype(float)
    edges = np.quantile(in_order(draws)[1], np.arange(1, 8) / 8, axis=0)

    def by_value(parts):
        cells = np.sum(parts[:, None] > edges, axis=1)
        counts = [np.bincount(cell, minlength=8) for cell in cells.T]
        off = np.abs(np.array(counts) / len(parts) - 1 / 8)
        return 0.5 * off.sum(axis=1).mean()

    def by_order(order):
        shares = np.mean((order @ places)[:, None] == orders @ places, axis=0)
        return 0.5 * np.abs(shares - 1.0 / len(orders)).sum()

    def error(x):
        order, parts = in_order(x)
        return float(max(by_value(parts), by_order(order)))

    apart = [by_value(in_order(draws)[1]) for draws in found.draws]
    print(
        f"labels: the references differ from their mean by {max(apart):.3f}, with log "
        f"evidence {found.log_evidence[0]:.3f} and {found.log_evidence[1]:.3f}"
    )
    alike = draws.reshape(-1, 3, num_components)  # a coordinate's law has no label
    return problem._replace(
        error=error,
        mean=np.repeat(alike.mean(axis=(0, 2)), num_components),
        sd=np.repeat(alike.std(axis=(0, 2)), num_components),
        log_evidence=float(np.mean(found.log_evidence)),
    )


def sensor_posterior(
    num_sensors: int = 8, seed: int = 24, reach: float = 0.3, sd: float = 0.02
) -> tuple[Callable, np.ndarray]:
    """Log likelihood of sensors' positions, flat ``(2 n,)``, and the true ones.

    Sensors and three anchors of known place, uniform on the unit square. Two see each
    other with probability exp(-d^2 / 2 R^2), R = .3, and then measure their distance with
    sd .02 (Ihler et al. 2005; Ahn, Chen & Welling, AISTATS 2013). With this seed everyone
    sees two others at least, and several could as well lie on the other side of these.
    """
    rng = np.random.default_rng(seed)
    places = rng.uniform(size=(num_sensors + 3, 2))
    first, second = np.triu_indices(num_sensors + 3, 1)
    is_asked = first < num_sensors  # distances between anchors say nothing
    first, second = first[is_asked], second[is_asked]
    distance = np.linalg.norm(places[first] - places[second], axis=1)
    is_seen = rng.uniform(size=len(first)) < np.exp(-0.5 * (distance / reach) ** 2)
    measured = jnp.asarray(distance + sd * rng.normal(size=len(first)))
    anchors = jnp.asarray(places[num_sensors:])

    def log_likelihood(x):
        every = jnp.concatenate([x.reshape(num_sensors, 2), anchors])
        square = jnp.sum((every[first] - every[second]) ** 2, axis=1) + 1e-8
        log_chance = -0.5 * square / reach**2
        seen = log_chance + dist.Normal(jnp.sqrt(square), sd).log_prob(measured)
        unseen = jnp.log(-jnp.expm1(log_chance))
        return jnp.sum(jnp.where(is_seen, seen, unseen))

    return log_likelihood, places[:num_sensors]


@cache
def sensors(num_sensors: int = 8, num_cells: int = 8) -> Problem:
    """Sensor-network localisation, d = 16: reflections, arcs, and pairs of them.

    The prior of a position is N(1/2, 1). Error: total variation of a sensor's place over
    8 cells (those nearest to the centres of k-means of the reference), mean over sensors.
    """
    log_likelihood, _ = sensor_posterior(num_sensors)
    dim = 2 * num_sensors
    problem = gaussian_problem(
        np.full(dim, 0.5), np.ones(dim), log_likelihood, lambda x: np.nan
    )
    found = reference("sensors", problem)
    draws = np.concatenate(found.draws).astype(float)
    k_means = [
        KMeans(num_cells, n_init=3, random_state=0).fit(part[::4])
        for part in np.split(draws, num_sensors, axis=1)
    ]

    def shares(x):
        parts = zip(
            k_means, np.split(x.astype(float), num_sensors, axis=1), strict=True
        )
        cells = [cells.predict(np.ascontiguousarray(part)) for cells, part in parts]
        return np.array([np.bincount(c, minlength=num_cells) / len(x) for c in cells])

    truth = shares(draws)
    error = lambda x, other=truth: (
        0.5 * float(np.abs(shares(x) - other).sum(axis=1).mean())
    )
    apart = error(found.draws[0], shares(found.draws[1]))
    print(
        f"sensors: the references differ by {apart:.3f}, with log evidence "
        f"{found.log_evidence[0]:.3f} and {found.log_evidence[1]:.3f}"
    )
    return problem._replace(
        error=error,
        mean=draws.mean(axis=0),
        sd=draws.std(axis=0),
        log_evidence=float(np.mean(found.log_evidence)),
    )


class Reference(NamedTuple):
    """Draws of two methods, each ``(n, dim)``, and their log evidence."""

    draws: tuple[np.ndarray, np.ndarray]
    log_evidence: tuple[float, float]


def reference(
    name: str, problem: Problem, budget: float = 2.4e7, num_kept: int = 20_000
) -> Reference:
    """From the file, else by long runs: minutes to an hour."""
    file = OUTPUT / f"{name}_reference.npz"
    if not file.exists():
        print(f"{name}: reference runs of {budget:.0f} evaluations", flush=True)
        runs = (
            exchange(problem, 1, budget, num_warmup=400)[-1],
            tempered_smc(problem, 1, budget, num_particles=20_000, cuts=(1,))[0],
        )
        rng, kept = np.random.default_rng(0), []
        for run in runs:
            flat = run.draws.reshape(-1, problem.dim)
            kept.append(flat[rng.choice(len(flat), num_kept, replace=False)])
            print(f"{run.evals:.3g} evaluations, {run.seconds:.0f} s, {run.note}")
        OUTPUT.mkdir(parents=True, exist_ok=True)
        evidence = [run.log_evidence for run in runs]
        np.savez_compressed(file, draws=np.array(kept), log_evidence=evidence)
    with np.load(file) as found:
        return Reference(tuple(found["draws"]), tuple(found["log_evidence"]))


PROBLEMS = {
    "many-well-10": partial(many_well, 10),
    "many-well-32": partial(many_well, 32),
    "funnel-10": funnel,
    "sensors": sensors,
    "labels": labels,
    "digits": digits,
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", default=["sensors"], choices=PROBLEMS)
    for name in parser.parse_args().names:
        problem = PROBLEMS[name]()
        print(f"{name}: d = {problem.dim}, log evidence {problem.log_evidence:.3f}")


if __name__ == "__main__":
    main()
