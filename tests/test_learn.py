"""From dicts and finished runs to priors on constrained, named quantities."""

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import numpyro
import numpyro.distributions as dist
import pandas as pd
import pytest
from numpyro import handlers
from numpyro.distributions import constraints
from numpyro.infer import MCMC, NUTS
from numpyro.infer.util import potential_energy

import numpyro_rtk as rtk
from numpyro_rtk.bounds import seeming_bounds
from numpyro_rtk.kernels.problem.problem import Problem
from numpyro_rtk.sites import (
    columns_of,
    constraint_of,
    split_sites,
    support_spec,
    unconstrain_rows,
)

# one Gaussian: the search for a number of components compiles a program for each
QUICK = {
    "num_steps": 20,
    "training": rtk.Training(num_components=1),
    "progress_bar": False,
}


def rows(seed=0, n=300):
    rng = np.random.default_rng(seed)
    mu = rng.normal(size=n)
    return {
        "mu": mu,
        "tau": np.exp(0.5 * rng.normal(size=n) + 0.3 * mu),
        "share": rng.dirichlet([3.0, 2.0, 1.0], size=n),
    }


SUPPORTS = {"tau": constraints.positive, "share": constraints.simplex}


@pytest.mark.parametrize(
    "support",
    [
        constraints.positive,
        constraints.unit_interval,
        constraints.interval(-1.0, 2.5),
        constraints.greater_than(3.0),
        constraints.less_than(-3.0),
        constraints.simplex,
        constraints.ordered_vector,
        constraints.positive_ordered_vector,
        constraints.corr_cholesky,
        constraints.interval(np.array([0.0, 1.0]), np.array([1.0, 5.0])),
        constraints.independent(constraints.positive, 1),
    ],
    ids=lambda support: str(support)[:30],
)
def test_a_support_survives_as_plain_data(support):
    import json

    spec = support_spec("support", support)
    assert hash(spec) == hash(support_spec("support", support))
    back = constraint_of(rtk.networks.site.SiteSpec.from_json(["a", [2], spec]).support)
    assert json.loads(json.dumps(spec))
    free = jr.normal(jr.key(0), (4, 3 if "corr" in spec[0] else 2))
    there, here = (dist.biject_to(c)(free) for c in (support, back))
    np.testing.assert_allclose(there, here, rtol=1e-6)


def test_named_rows_go_there_and_back():
    samples = rows()
    flat, sites = unconstrain_rows(samples, SUPPORTS)
    assert flat.shape == (300, 1 + 1 + 2)
    back = split_sites(sites, jnp.asarray(flat))
    for name, value in samples.items():
        np.testing.assert_allclose(back[name], value, rtol=2e-4, atol=1e-5)


def test_log_prob_on_a_support_is_that_of_the_transformed_density():
    mixture = rtk.GaussianMixture(np.ones(1), np.array([[0.3]]), np.array([[[0.25]]]))
    prior = rtk.LearnedPrior(mixture, support=constraints.positive)
    x = jnp.array([[0.2], [1.0], [3.5]])
    expected = dist.LogNormal(0.3, 0.5).log_prob(x)[:, 0]
    np.testing.assert_allclose(prior.log_prob(x), expected, rtol=1e-5)
    draws = prior.sample(jr.key(0), (4000,))
    assert np.all(draws > 0)
    # standard error of the mean of 4000 logs: .5 / sqrt(4000) = .008
    assert abs(np.log(draws).mean() - 0.3) < 4 * 0.008


def test_log_prob_on_a_simplex_integrates_to_one():
    means, covariances = np.array([[0.2, -0.4]]), np.array([[[0.4, 0.1], [0.1, 0.3]]])
    mixture = rtk.GaussianMixture(np.ones(1), means, covariances)
    prior = rtk.LearnedPrior(mixture, support=constraints.simplex)
    assert prior.event_shape == (3,)
    # uniform draws on the simplex have density 2 in its first two coordinates
    x = jr.dirichlet(jr.key(0), jnp.ones(3), (20_000,))
    ratio = np.exp(np.asarray(prior.log_prob(x), float)) / 2.0
    error = ratio.std() / np.sqrt(len(ratio))
    assert error < 0.02
    assert abs(ratio.mean() - 1.0) < 4 * error


MIXTURE = rtk.GaussianMixture(
    np.array([0.3, 0.7]), np.array([[-1.0], [0.8]]), np.array([[[0.1]], [[0.2]]])
)


@pytest.mark.parametrize("wrap", ["plain", "mask", "scale"])
def test_potential_with_a_support_is_that_of_numpyro(wrap):
    def model(y):
        prior = rtk.LearnedPrior(MIXTURE, support=constraints.interval(0.0, 2.0))
        if wrap == "mask":
            prior = prior.mask(False)
        with numpyro.handlers.scale(scale=0.5 if wrap == "scale" else 1.0):
            x = numpyro.sample("x", prior)
        numpyro.sample("y", dist.Normal(x[0], 0.5), obs=y)

    problem = Problem(model, None)
    args = (jnp.array(0.7),)
    problem.setup(jr.key(0), args, {})
    bound = problem.bind(args, {}, problem.frame())
    level = rtk.paths.levels_of(np.zeros(1), 1.0)
    level = jax.tree.map(lambda leaf: leaf[0], level)
    for free in (-1.5, 0.0, 0.8):
        value = {"x": jnp.array([free])}
        ours = bound.energy(bound.path(bound.flatten(value), level).log_density)
        np.testing.assert_allclose(
            ours, potential_energy(model, args, {}, value), rtol=1e-4
        )


def test_posterior_of_a_positive_site_against_quadrature():
    def model(y):
        prior = rtk.LearnedPrior(MIXTURE, support=constraints.positive)
        x = numpyro.sample("x", prior)
        numpyro.sample("y", dist.Normal(x[0], 0.8), obs=y)

    kernel = rtk.RTKReplicaExchange(model, num_levels=8)
    mcmc = MCMC(
        kernel,
        num_warmup=100,
        num_samples=500,
        num_chains=8,
        chain_method="vectorized",
        progress_bar=False,
    )
    mcmc.run(jr.key(0), jnp.array(1.0))
    draws = np.asarray(mcmc.get_samples()["x"])[:, 0]
    u = np.linspace(-6.0, 5.0, 4001)
    log_p = np.asarray(MIXTURE.log_density(jnp.asarray(u)[:, None], 0.0), float)
    log_p += -0.5 * ((1.0 - np.exp(u)) / 0.8) ** 2
    p = np.exp(log_p)
    p /= p.sum()
    mean = p @ np.exp(u)
    sd = np.sqrt(p @ np.exp(2 * u) - mean**2)
    # at least 400 effective draws of 4000: standard error sd / 20
    assert abs(draws.mean() - mean) < 4 * sd / 20
    assert abs(np.mean(draws < 1.0) - p[u < 0.0].sum()) < 4 * 0.5 / 20


def first_model(y):
    mu = numpyro.sample("mu", dist.Normal(0.0, 3.0))
    tau = numpyro.sample("tau", dist.HalfNormal(2.0))
    numpyro.deterministic("twice", 2.0 * mu)
    numpyro.sample("y", dist.Normal(mu, tau), obs=y)


@pytest.fixture(scope="module")
def yesterday():
    mcmc = MCMC(NUTS(first_model), num_warmup=200, num_samples=400, progress_bar=False)
    mcmc.run(jr.key(0), jnp.array([0.4, 1.9, 1.1, -0.3]))
    return mcmc


def test_a_finished_run_becomes_a_prior_on_its_latent_sites(yesterday, tmp_path):
    model_, _ = rtk.fit(jr.key(1), yesterday, **QUICK)
    assert [site.name for site in model_.sites] == ["mu", "tau"]
    assert [site.support for site in model_.sites] == [("real",), ("positive",)]
    rtk.save(tmp_path / "prior.rtk", model_)
    model_ = rtk.load(tmp_path / "prior.rtk")

    def today(y):
        sites = rtk.learned_sites("prior", rtk.LearnedPrior(model_))
        numpyro.sample("y", dist.Normal(sites["mu"], sites["tau"]), obs=y)

    mcmc = MCMC(
        rtk.RTKReplicaExchange(today, num_levels=5),
        num_warmup=20,
        num_samples=20,
        progress_bar=False,
    )
    mcmc.run(jr.key(2), jnp.array([2.0, 2.5]))
    samples = mcmc.get_samples()
    assert set(samples) == {"prior", "mu", "tau"}
    assert np.all(samples["tau"] > 0)
    np.testing.assert_allclose(samples["mu"], samples["prior"][:, 0], rtol=1e-5)
    np.testing.assert_allclose(
        samples["tau"], np.exp(samples["prior"][:, 1]), rtol=1e-4
    )


def test_a_posterior_is_handed_on_day_after_day_by_the_same_two_lines():
    """What ``learned_sites`` recorded keeps its supports, in two scopes too."""
    learn = lambda samples, **options: (
        rtk.fit(jr.key(1), samples, **options, **QUICK).model
    )
    prior = rtk.LearnedPrior(learn(rows(), support=SUPPORTS))

    def model():
        for scope in ("a", "b"):
            with handlers.scope(prefix=scope):
                sites = rtk.learned_sites("yesterday", prior)
        numpyro.sample("y", dist.Normal(sites["mu"], sites["tau"]), obs=0.3)
        numpyro.deterministic("other", sites["mu"] ** 2)

    mcmc = MCMC(NUTS(model), num_warmup=20, num_samples=200, progress_bar=False)
    mcmc.run(jr.key(0))
    today = learn(mcmc)
    names = ["a/mu", "a/tau", "a/share", "b/mu", "b/tau", "b/share"]
    assert [site.name for site in today.sites] == names
    supports = [("real",), ("positive",), ("simplex",)]
    assert [site.support for site in today.sites] == 2 * supports
    today = learn(mcmc, sites=["b/tau", "a/mu"])
    assert [site.support for site in today.sites] == [("positive",), ("real",)]
    vector = learn(mcmc, sites=["a/yesterday"])
    assert vector.sites[0].support == ("real",)
    with pytest.raises(ValueError, match=r"deterministic sites.*got none for .'other'"):
        learn(mcmc, sites=["other"])


def test_bounds_that_depend_on_other_sites_are_asked_for():
    def model(y):
        top = numpyro.sample("top", dist.LogNormal(0.0, 0.3))
        x = numpyro.sample("x", dist.Uniform(0.0, top))
        numpyro.sample("y", dist.Normal(x, 0.5), obs=y)

    mcmc = MCMC(NUTS(model), num_warmup=20, num_samples=30, progress_bar=False)
    mcmc.run(jr.key(0), jnp.array(0.5))
    with pytest.raises(
        ValueError, match=r"depend on other sites; got none for \['x'\]"
    ):
        rtk.fit(jr.key(1), mcmc, **QUICK)
    model_, _ = rtk.fit(jr.key(1), mcmc, support={"x": constraints.positive}, **QUICK)
    assert [site.name for site in model_.sites] == ["top", "x"]


def test_arviz_posteriors_are_taken_too(yesterday):
    import arviz as az

    data = az.from_numpyro(yesterday)
    positive = {"tau": constraints.positive}
    with pytest.raises(ValueError, match="linear functions.*mu, twice"):
        rtk.fit(jr.key(1), data, support=positive, **QUICK)
    # no support came with the file: a scale is not taken for a real number
    message = r"got none for \['tau'\].*`support=\{'tau': constraints.positive\}`"
    with pytest.raises(ValueError, match=message):
        rtk.fit(jr.key(1), data, sites=["mu", "tau"], **QUICK)
    real = {"tau": constraints.real}
    rtk.fit(jr.key(1), data, sites=["mu", "tau"], support=real, **QUICK)
    model_, _ = rtk.fit(
        jr.key(1), data, sites=["tau"], support={"tau": constraints.positive}, **QUICK
    )
    assert model_.sites[0].name == "tau"
    assert model_.event_shape == (1,)


def test_one_array_with_a_support():
    samples = rows()["share"]
    model_, _ = rtk.fit(jr.key(0), samples, support=constraints.simplex, **QUICK)
    prior = rtk.LearnedPrior(model_)
    assert prior.event_shape == (3,)
    np.testing.assert_allclose(prior.sample(jr.key(1), (5,)).sum(-1), 1.0, rtol=1e-5)
    with pytest.raises(ValueError, match="learned on simplex"):
        rtk.LearnedPrior(model_, support=constraints.positive)


REFUSED = {
    "outside": (
        lambda run: (
            {"a": np.array([-1.0] + [1.0] * 20)},
            {"support": {"a": "positive"}},
        ),
        ValueError,
        r"`samples\['a'\]` must lie in its support, positive; got 1 of 21 rows",
    ),
    "boundary": (
        lambda run: (
            {"a": np.linspace(0.0, 0.9, 20)},
            {"support": {"a": "unit_interval"}},
        ),
        ValueError,
        "off its boundary",
    ),
    "lengths": (
        lambda run: ({"a": np.ones(20), "b": np.ones(21)}, {}),
        ValueError,
        "one length",
    ),
    "unknown site": (
        lambda run: ({"a": np.ones(20)}, {"sites": ["b"]}),
        ValueError,
        r"`sites` must be names in `samples`, \['a'\]; got \['b'\]",
    ),
    "unknown support": (
        lambda run: ({"a": np.ones(20)}, {"support": {"b": "positive"}}),
        ValueError,
        "`support` must name sites",
    ),
    "deterministic without support": (
        lambda run: (run, {"sites": ["mu", "twice"]}),
        ValueError,
        r"`support` must be given for deterministic sites.*got none for \['twice'\]",
    ),
    "sites of an array": (
        lambda run: (np.ones((20, 2)), {"sites": ["a"]}),
        ValueError,
        "`sites` must be None",
    ),
}


@pytest.mark.parametrize(("case", "error", "message"), REFUSED.values(), ids=REFUSED)
def test_refused_with_a_remedy(yesterday, case, error, message):
    samples, options = case(yesterday)
    if "support" in options:
        support = {k: getattr(constraints, v) for k, v in options["support"].items()}
        options = {"support": support}
    with pytest.raises(error, match=message):
        rtk.fit(jr.key(0), samples, **options, **QUICK)


@pytest.mark.parametrize(
    ("support", "error", "message"),
    [
        ("positive", TypeError, "must be a NumPyro constraint"),
        (constraints.boolean, ValueError, "must be continuous"),
        (constraints.interval, TypeError, "must be a NumPyro constraint"),
    ],
)
def test_supports_that_are_none(support, error, message):
    with pytest.raises(error, match=message):
        rtk.fit(jr.key(0), np.ones((20, 2)), support=support, **QUICK)


def test_learned_sites_of_an_array_are_refused():
    with pytest.raises(ValueError, match="numpyro.sample"):
        rtk.learned_sites("x", rtk.LearnedPrior(MIXTURE))
    with pytest.raises(TypeError, match="must be a LearnedPrior"):
        rtk.learned_sites("x", MIXTURE)


BOUNDED = np.random.default_rng(0)
POSITIVE = BOUNDED.lognormal(0.0, 0.5, size=400)
SHARE = BOUNDED.beta(2.0, 3.0, size=400)
REAL = BOUNDED.normal(size=400)


@pytest.mark.parametrize(
    ("value", "support"),
    [
        (POSITIVE, "positive"),
        (np.stack([POSITIVE, SHARE], axis=1), "positive"),
        (0.01 * POSITIVE, "positive"),
        (SHARE, "unit_interval"),
        (rows()["share"], "simplex"),
        (np.append(BOUNDED.gamma(4.0, size=400), 300.0), "positive"),
        (REAL, None),
        (170.0 + 10.0 * REAL, None),  # heights: 17 standard deviations from 0
        (POSITIVE[:40], None),  # one of 40 would have been negative: no evidence
        (np.append(10.0 + REAL, 1e4), None),
        (0.5 + 0.05 * REAL, None),
        (-POSITIVE, None),
        (np.log(POSITIVE), None),
        (np.repeat([1.0, 2.0], 200), None),  # discrete: refused for that
    ],
)
def test_bounds_that_draws_seem_to_have(value, support):
    bound = seeming_bounds({"a": value}, {}).get("a")
    assert (None if bound is None else bound.support) == support
    assert seeming_bounds({"a": value}, {"a": constraints.real}) == {}


def test_of_a_file_without_supports_a_near_bound_is_enough():
    near = lambda value: set(seeming_bounds({"a": value}, {}, is_wary=True))
    assert near(POSITIVE[:40]) == near(5.0 + np.clip(REAL, -3, 3)) == {"a"}
    assert near(8.0 + REAL) == near(REAL) == near(10.0 * REAL) == set()


def test_bounds_are_said_for_arrays_and_dicts():
    with pytest.warns(UserWarning, match="tau is never negative in 400.*'tau': constr"):
        rtk.fit(jr.key(0), {"mu": REAL, "tau": POSITIVE}, **QUICK)
    # warnings are errors here: nothing is trained
    with pytest.raises(UserWarning, match="`support=constraints.positive` or another"):
        rtk.fit(jr.key(0), POSITIVE, **QUICK)
    with pytest.raises(
        UserWarning, match=r"at index \(1,\) never.*Pass a dict of arrays"
    ):
        rtk.fit(jr.key(0), np.stack([REAL, POSITIVE], axis=1), **QUICK)
    with pytest.raises(ValueError, match="'share': constraints.simplex"):
        rtk.fit(jr.key(0), {"share": rows()["share"]}, **QUICK)
    with pytest.raises(ValueError, match="`support=constraints.simplex`"):
        rtk.fit(jr.key(0), rows()["share"], **QUICK)


def test_columns_of_a_table_are_sites():
    frame = pd.DataFrame({"mu": REAL, "tau": POSITIVE, "kind": ["a", "b"] * 200})
    frame["cut"] = frame["mu"] > 0
    frame["count"] = np.arange(400)
    frame["class"] = frame["kind"].astype("category")
    frame["nullable"] = frame["mu"].astype("Float64")
    support = {"tau": constraints.positive}
    message = r"got \{'kind': .*'cut': 'bool', 'count': 'int64', 'class': .*Leave these"
    with pytest.raises(TypeError, match=message):
        rtk.fit(jr.key(0), frame, support=support, **QUICK)
    options = {"sites": ["mu", "tau"], "support": support, **QUICK}
    model_, _ = rtk.fit(jr.key(0), frame, **options)
    assert [site.name for site in model_.sites] == ["mu", "tau"]
    np.testing.assert_array_equal(columns_of("samples", frame)["nullable"], REAL)
    frame.columns = ["mu", "mu", *frame.columns[2:]]
    with pytest.raises(ValueError, match=r"one column for each name; got \['mu'\]"):
        rtk.fit(jr.key(0), frame, **options)


def test_integers_do_not_become_floating_in_a_dict():
    samples = {"a": REAL, "k": np.arange(400)}
    with pytest.raises(TypeError, match=r"got \{'k': 'int64'\}: discrete"):
        rtk.fit(jr.key(0), samples, **QUICK)
    rtk.fit(jr.key(0), samples, sites=["a"], **QUICK)
