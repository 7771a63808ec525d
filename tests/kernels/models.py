"""The table of models: each must mean to a kernel what it means to NUTS.

A row is a model and its arguments. ``same(...)`` puts it into ``MODELS``; the kernel's
log density is then compared with NumPyro's potential. ``refused(message, ...)`` puts it
into ``REFUSALS``: NumPyro refuses it, and a kernel must, by a message that matches.
Groups of one kind are the loops at the end.
"""

from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import numpyro
import numpyro.distributions as dist
from numpyro import handlers
from numpyro.contrib.control_flow import cond, scan
from numpyro.contrib.module import eqx_module, random_eqx_module
from numpyro.distributions import constraints, transforms
from numpyro.infer import reparam
from numpyro.primitives import Messenger, mutable as mutable_site

import numpyro_rtk as rtk
from tests.kernels.densities import Moving


class Row(NamedTuple):
    model: Any
    args: tuple
    kwargs: dict
    message: str | None = None


MODELS: dict[str, Row] = {}
REFUSALS: dict[str, Row] = {}

ONE = rtk.GaussianMixture([0.3, 0.7], [[-1.2], [0.9]], [[[0.3]], [[0.25]]])
TWO = rtk.GaussianMixture(
    [0.3, 0.7],
    [[-1.5, 0.5], [1.0, -0.5]],
    [np.eye(2) * 0.4, [[0.4, -0.05], [-0.05, 0.6]]],
    standardise=True,
)
PRIOR = rtk.LearnedPrior(TWO)
LINE = rtk.LearnedPrior(ONE)
Y = jnp.array(0.4)
ROW = jnp.array([0.3, -0.8, 1.1])
MASK = jnp.array([True, False, True])


def same(*args, **kwargs):
    """A row: the model that is decorated, called with these arguments."""

    def add(model):
        MODELS[model.__name__.strip("_").replace("_", " ")] = Row(model, args, kwargs)
        return model

    return add


def refused(message, *args, **kwargs):
    """A row of a model that NumPyro refuses, and the kernel with this message."""

    def add(model):
        name = model.__name__.strip("_").replace("_", " ")
        REFUSALS[name] = Row(model, args, kwargs, message)
        return model

    return add


def observe(x, y=Y, scale=0.7):
    """A likelihood with another gradient in every coordinate."""
    flat = jnp.ravel(x)
    location = jnp.sum(jnp.sin(flat + jnp.arange(flat.size)))
    numpyro.sample("y", dist.Normal(location, scale), obs=y)


# -- learned sites -------------------------------------------------------------------


@same(Y)
def alone(y):
    observe(numpyro.sample("x", PRIOR), y)


@same(Y)
def beside_an_ordinary_site(y):
    sigma = numpyro.sample("sigma", dist.LogNormal(-0.5, 0.5))
    observe(numpyro.sample("x", PRIOR), y, sigma)


@same(Y)
def several_learned(y):
    x = numpyro.sample("x", PRIOR)
    observe(x[0] * numpyro.sample("z", LINE) + x[1], y)


@same()
def nothing_observed():
    numpyro.sample("x", PRIOR)


@same(Y)
def unused_by_the_likelihood(y):
    numpyro.sample("x", PRIOR)
    observe(numpyro.sample("b", dist.Normal(0.3, 2.0)), y)


@same(Y)
def expanded_to_event(y):
    observe(numpyro.sample("x", PRIOR.expand([3]).to_event(1)), y)


@same(Y)
def expanded_twice(y):
    observe(numpyro.sample("x", PRIOR.expand([3]).expand([2, 3])), y)


@same(Y)
def expanded_by(y):
    observe(numpyro.sample("x", PRIOR.expand_by([3])), y)


@same(Y)
def sample_shape(y):
    observe(numpyro.sample("x", PRIOR, sample_shape=(3,)), y)


@same(Y)
def in_a_plate(y):
    with numpyro.plate("n", 3):
        observe(numpyro.sample("x", PRIOR), y)


@same(Y)
def in_nested_plates(y):
    with numpyro.plate("n", 3, dim=-2), numpyro.plate("m", 2):
        x = numpyro.sample("x", PRIOR)
    observe(x, y)


@same(Y)
def in_a_plate_stack(y):
    with numpyro.plate_stack("n", [2, 3]):
        x = numpyro.sample("x", LINE)
    observe(x, y)


@same(Y)
def in_a_plate_on_a_support(y):
    prior = rtk.LearnedPrior(TWO, support=constraints.positive)
    with numpyro.plate("n", 3):
        x = numpyro.sample("x", prior)
    observe(jnp.log(x), y)


@same(Y)
def condition_is_latent(y):
    c = numpyro.sample("c", dist.Normal(0.3, 0.8))
    observe(numpyro.sample("x", rtk.LearnedPrior(Moving(), condition=c)), y)


@same(Y)
def condition_is_learned(y):
    c = numpyro.sample("c", LINE)
    observe(numpyro.sample("x", rtk.LearnedPrior(Moving(), condition=c[0])), y)


@same(Y, ROW)
def condition_is_data_in_a_plate(y, c):
    with numpyro.plate("n", 3):
        x = numpyro.sample("x", rtk.LearnedPrior(Moving(), condition=c))
    observe(x, y)


@same(Y, ROW)
def condition_with_a_sample_shape(y, c):
    prior = rtk.LearnedPrior(Moving(), condition=c)
    observe(numpyro.sample("x", prior, sample_shape=(2,)), y)


@same(Y)
def condition_is_latent_and_masked_on_a_support(y):
    c = numpyro.sample("c", dist.Normal(ROW, 1.0).to_event(1))
    prior = rtk.LearnedPrior(Moving(), condition=c, support=constraints.positive)
    with numpyro.plate("n", 3), handlers.mask(mask=MASK), handlers.scale(scale=1.7):
        x = numpyro.sample("x", prior)
    observe(x, y)


@same(Y)
def observed_learned(y):
    loc = numpyro.sample("loc", dist.Normal(0.2, 1.0))
    numpyro.sample("x", PRIOR, obs=jnp.stack([loc, y]))


@same(Y)
def observed_under_a_latent_condition(y):
    c = numpyro.sample("c", dist.Normal(0.3, 0.8))
    numpyro.sample("x", rtk.LearnedPrior(Moving(), condition=c), obs=y[None])


@same(Y)
def mask_follows_a_latent_site(y):
    x = numpyro.sample("x", PRIOR)
    with handlers.mask(mask=x[0] > 0):
        numpyro.sample("z", LINE)
        observe(x, y)


@same(Y)
def scale_follows_a_latent_site(y):
    x = numpyro.sample("x", PRIOR)
    with handlers.scale(scale=jnp.exp(x[0])):
        observe(numpyro.sample("z", LINE), y)


@same(Y)
def learned_sites_by_name(y):
    for scope in ("a", "b"):
        with handlers.scope(prefix=scope):
            values = rtk.learned_sites("p", NAMED)
    observe(jnp.log(values["tau"]) * values["mu"], y)


@same(Y)
def learned_sites_in_a_plate(y):
    with numpyro.plate("n", 3):
        values = rtk.learned_sites("p", NAMED)
    observe(jnp.log(values["tau"]) * values["mu"], y)


@same(ROW)
def learned_sites_in_scan(y):
    def step(level, y_t):
        values = rtk.learned_sites("p", NAMED)
        level = level + values["mu"]
        numpyro.sample("y", dist.Normal(level, values["tau"]), obs=y_t)
        return level, values["tau"]

    scan(step, 0.0, y)


NAMED = rtk.LearnedPrior(
    rtk.fit(
        jr.key(0),
        {
            "mu": jr.normal(jr.key(1), (60,)),
            "tau": jnp.exp(jr.normal(jr.key(2), (60,))),
        },
        support={"tau": constraints.positive},
        network=rtk.EnergyMLP(2, width=4, depth=1, key=jr.key(3)),
        num_steps=1,
        training=rtk.Training(num_components=1),
        progress_bar=False,
    )[0]
)

# -- inside other distributions: as ordinary sites ------------------------------------


@same(Y)
def transformed(y):
    affine = transforms.AffineTransform(1.0, -2.0)
    observe(numpyro.sample("x", dist.TransformedDistribution(PRIOR, [affine])), y)


@same(Y)
def transformed_to_a_support(y):
    x = dist.TransformedDistribution(LINE, [transforms.ExpTransform()])
    observe(jnp.log(numpyro.sample("x", x)), y)


@same(Y)
def mixture_of_learned(y):
    weights = dist.Categorical(jnp.array([0.3, 0.7]))
    other = dist.Normal(jnp.zeros(2), 1.5).to_event(1)
    observe(numpyro.sample("x", dist.MixtureGeneral(weights, [PRIOR, other])), y)


@same(Y)
def mixture_of_one_family(y):
    weights = dist.Categorical(jnp.array([0.3, 0.7]))
    parts = rtk.LearnedPrior(Moving(), condition=jnp.array([-0.5, 1.0]))
    observe(numpyro.sample("x", dist.MixtureSameFamily(weights, parts)), y)


@same(Y)
def reparametrised_transformed(y):
    affine = transforms.AffineTransform(1.0, -2.0)
    with handlers.reparam(config={"x": reparam.TransformReparam()}):
        x = numpyro.sample("x", dist.TransformedDistribution(PRIOR, [affine]))
    observe(x, y)


# -- control flow ----------------------------------------------------------------------


def walk(prior, y, **options):
    def step(level, y_t):
        e = numpyro.sample("e", prior)
        level = level + jnp.sum(e)
        numpyro.sample("y", dist.Normal(level, 0.7), obs=y_t)
        return level, level

    scan(step, 0.0, y, **options)


@same(ROW)
def scan_with_the_prior_closed_over(y):
    walk(PRIOR, y)


@same(ROW, PRIOR)
def scan_with_the_prior_as_an_argument(y, prior):
    walk(prior, y, reverse=True)


@same(ROW)
def scan_on_a_support(y):
    walk(rtk.LearnedPrior(ONE, support=constraints.positive), y)


@same(ROW)
def scan_of_a_mask(y):
    walk(PRIOR.mask(False), y)


@same(ROW)
def scan_of_a_wrapped_prior(y):
    walk(dist.TransformedDistribution(LINE, [transforms.ExpTransform()]), y)


@same(ROW)
def scan_with_a_plate_inside(y):
    def step(level, y_t):
        with numpyro.plate("n", 2):
            e = numpyro.sample("e", PRIOR)
        numpyro.sample("y", dist.Normal(level + jnp.sum(e), 0.7), obs=y_t)
        return level + e[0, 0], None

    scan(step, 0.0, y)


@same(ROW)
def scan_under_a_carried_condition(y):
    def step(c, y_t):
        x = numpyro.sample("x", rtk.LearnedPrior(Moving(), condition=c))
        numpyro.sample("y", dist.Normal(x[0], 0.7), obs=y_t)
        return 0.5 * x[0], None

    scan(step, numpyro.sample("c", dist.Normal()), y)


@same(ROW)
def reverse_scan_under_conditions_that_are_data(y):
    def step(level, y_t):
        x = numpyro.sample("x", rtk.LearnedPrior(Moving(), condition=y_t))
        numpyro.sample("y", dist.Normal(level + x[0], 0.7), obs=y_t)
        return level + x[0], None

    scan(step, 0.0, y, reverse=True)


@same(ROW)
def scan_of_ordinary_sites_after_a_learned_one(y):
    start = numpyro.sample("x", PRIOR)

    def step(level, y_t):
        level = numpyro.sample("level", dist.Normal(0.9 * level, 0.4))
        numpyro.sample("y", dist.LogNormal(level, 0.7), obs=jnp.exp(y_t))
        return level, None

    scan(step, start[0], y)


@same(Y)
def cond_on_a_latent_site(y):
    b = numpyro.sample("b", dist.Normal())
    means = lambda m: (m._offset, m._noised.centres)
    other = eqx.tree_at(means, ONE, replace_fn=lambda leaf: -leaf)
    draw = lambda m: lambda _: numpyro.sample("x", rtk.LearnedPrior(m))
    observe(b * cond(b > 0, draw(ONE), draw(other), None), y)


@same(Y)
def cond_between_noise_processes(y):
    b = numpyro.sample("b", dist.Normal())
    process = lambda m: (m.loc, m._offset)  # of the same density
    elsewhere = eqx.tree_at(process, TWO, (TWO.loc + 1.0, TWO._offset - 1.0))
    draw = lambda m: lambda _: numpyro.sample("x", rtk.LearnedPrior(m))
    observe(b * cond(b > 0, draw(TWO), draw(elsewhere), None), y)


@same(Y)
def lax_control_flow_in_the_likelihood(y):
    x = numpyro.sample("x", PRIOR)
    total = jax.lax.fori_loop(0, 3, lambda i, s: jnp.sin(s) + x[0], x[1])
    observe(jax.lax.cond(x[0] > 0, jnp.sin, jnp.cos, total), y)


# -- primitives and what they depend on ------------------------------------------------


@same(Y)
def factor(y):
    x = numpyro.sample("x", PRIOR)
    numpyro.factor("f", -jnp.sum(x**4))


@same(Y)
def deterministic(y):
    x = numpyro.sample("x", PRIOR)
    observe(numpyro.deterministic("d", x**2), y)


@same(Y)
def param(y):
    a = numpyro.param("a", 1.7, constraint=constraints.positive)
    observe(a * numpyro.sample("x", PRIOR), y)


@same(Y)
def param_drawn_at_first(y):
    a = numpyro.param("a", lambda key: jr.normal(key, (2,)))
    observe(a * numpyro.sample("x", PRIOR), y)


@same(Y)
def mutable(y):
    count = mutable_site("count", {"value": 1.5})
    observe(count["value"] * numpyro.sample("x", PRIOR), y)


@same(Y)
def module(y):
    net = eqx_module("net", eqx.nn.MLP(2, 1, 3, 1, key=jr.key(0)))
    observe(net(numpyro.sample("x", PRIOR)), y)


@same(Y)
def random_module(y):
    linear = eqx.nn.Linear(2, 1, key=jr.key(0))
    net = random_eqx_module("net", linear, prior=dist.Normal(0.0, 2.0))
    observe(net(numpyro.sample("x", PRIOR)), y)


@same(Y)
def prng_key(y):
    noise = jr.normal(numpyro.prng_key(), (2,))
    observe(noise + numpyro.sample("x", PRIOR), y)


@same(Y)
def likelihood_by_simulation_under_one_key(y):
    x = numpyro.sample("x", PRIOR)
    draws = dist.Normal(x[0], 1.0).sample(numpyro.prng_key(), (20,))
    numpyro.sample("y", dist.Normal(jnp.mean(draws), jnp.std(draws)), obs=y)


@same(Y)
def hidden_site(y):
    with handlers.block():
        b = numpyro.sample("b", dist.Normal())
    observe(b + numpyro.sample("x", PRIOR), y)


@same(Y)
def hidden_learned_site(y):
    with handlers.block():
        b = numpyro.sample("b", LINE)
    observe(b + numpyro.sample("x", PRIOR), y)


@same(Y, None, "log", options={"scale": 0.3, "names": ["a"]})
def arguments_of_all_kinds(y, missing, link, options):
    x = numpyro.sample("x", PRIOR)
    assert missing is None
    observe(jnp.exp(x) if link == "log" else x, y, options["scale"])


@same(ROW)
def missing_data(y):
    with numpyro.plate("n", 3):
        x = numpyro.sample("x", PRIOR)
        numpyro.sample("y", dist.Normal(x[:, 0]), obs=y, obs_mask=MASK)


@same(ROW)
def missing_learned_data(y):
    with numpyro.plate("n", 3):
        obs = jnp.stack([y, y], axis=-1)
        x = numpyro.sample("x", PRIOR, obs=obs, obs_mask=MASK)
    numpyro.sample("z", dist.Normal(jnp.sum(x)), obs=0.3)


@same(ROW)
def subsample_of_nothing(y):
    with numpyro.plate("n", 3, subsample_size=3):
        batch = numpyro.subsample(y, event_dim=0)
        numpyro.sample("y", dist.Normal(numpyro.sample("x", LINE)[:, 0]), obs=batch)


def batches(y):
    x = numpyro.sample("x", PRIOR)
    with numpyro.plate("n", 3, subsample_size=2):
        batch = numpyro.subsample(y, event_dim=0)
        numpyro.sample("y", dist.Normal(x[0]), obs=batch)


@same(ROW)
def subsample_fixed_by_hand(y):
    handlers.substitute(batches, data={"n": jnp.array([0, 2])})(y)


@same(Y)
def learned_sites_of_a_batch_fixed_by_hand(y):
    def model():
        with numpyro.plate("n", 5, subsample_size=2):
            x = numpyro.sample("x", rtk.LearnedPrior(TWO, support=constraints.positive))
        observe(jnp.log(x), y)

    handlers.substitute(model, data={"n": jnp.array([0, 2])})()


@same(ROW)
def subsample_with_a_seed_of_its_own(y):
    handlers.seed(batches, rng_seed=3)(y)


@same(Y)
def bounds_follow_another_site(y):
    x = numpyro.sample("x", PRIOR)
    low = numpyro.sample("low", dist.Uniform(-20.0, x[0] - 4.0))
    observe(numpyro.sample("b", dist.Uniform(low, x[0] + 5.0)), y)


@same(Y)
def hierarchy_in_plates(y):
    mu = numpyro.sample("mu", PRIOR)
    tau = numpyro.sample("tau", dist.HalfNormal(1.0))
    with numpyro.plate("n", 3):
        theta = numpyro.sample("theta", dist.Normal(mu[0], tau))
    observe(theta, y)


# -- handlers ---------------------------------------------------------------------------


def regression(y):
    x = numpyro.sample("x", PRIOR)
    sigma = numpyro.sample("sigma", dist.LogNormal(-0.5, 0.5))
    with numpyro.plate("n", 3):
        b = numpyro.sample("b", dist.Normal(x[0], sigma))
        numpyro.sample("y", dist.Normal(b, 0.5), obs=y)


def wide(y):
    """Three learned events and three ordinary ones, all on a support."""
    prior = rtk.LearnedPrior(TWO, support=constraints.positive)
    with numpyro.plate("n", 3):
        x = numpyro.sample("x", prior)
        b = numpyro.sample("b", dist.Gamma(2.0, 1.5))
        numpyro.sample("y", dist.Normal(jnp.log(x[:, 0]) - b), obs=y)


HANDLERS = {
    "scope": (handlers.scope(regression, prefix="a"), regression),
    "condition": (handlers.condition(regression, data={"sigma": 0.4}), regression),
    "condition x": (handlers.condition(regression, data={"x": ROW[:2]}), regression),
    "substitute x": (handlers.substitute(regression, data={"x": ROW[:2]}), regression),
    "block inside": (handlers.block(regression, hide=["y"]), regression),
    "do": (handlers.do(regression, data={"sigma": 0.4}), regression),
    "do x": (handlers.do(regression, data={"x": ROW[:2]}), regression),
    "substitute": (handlers.substitute(regression, data={"sigma": 0.4}), regression),
    "uncondition": (handlers.uncondition(regression), regression),
    "infer config": (
        handlers.infer_config(regression, config_fn=lambda site: {"a": 1}),
        regression,
    ),
    "seed of its own": (handlers.seed(regression, rng_seed=1), regression),
    "lift": (handlers.lift(param, prior={"a": dist.LogNormal(0.0, 1.0)}), param),
    "loc-scale reparam": (
        handlers.reparam(regression, config={"b": reparam.LocScaleReparam(0.3)}),
        regression,
    ),
    "mask": (handlers.mask(wide, mask=MASK), wide),
    "mask True": (handlers.mask(wide, mask=True), wide),
    "mask False": (handlers.mask(wide, mask=False), wide),
    "mask of one": (handlers.mask(wide, mask=jnp.array(False)), wide),
    "scale": (handlers.scale(wide, scale=0.3), wide),
    "scale by an array": (handlers.scale(wide, scale=jnp.abs(ROW)), wide),
    "scale and mask": (handlers.scale(handlers.mask(wide, mask=MASK), scale=2.0), wide),
}
for _name, (_model, _) in HANDLERS.items():
    MODELS[f"handler: {_name}"] = Row(_model, (Y if _name == "lift" else ROW,), {})

# -- supports ---------------------------------------------------------------------------

# made when it is asked for: each compiles a little, and every process reads this file
ORDINARY = {
    "Normal": lambda: dist.Normal(0.3, 1.5),
    "LogNormal": lambda: dist.LogNormal(0.3, 1.5),
    "Beta": lambda: dist.Beta(2.0, 3.0),
    "Uniform": lambda: dist.Uniform(-1.0, 2.0),
    "Uniform of arrays": lambda: dist.Uniform(jnp.zeros(2), ROW[:2] + 2.0),
    "Pareto": lambda: dist.Pareto(1.5, 3.0),
    "TruncatedNormal": lambda: dist.TruncatedNormal(0.0, 1.0, low=-0.5, high=2.0),
    "LeftTruncated": lambda: dist.LeftTruncatedDistribution(dist.Cauchy(), low=0.3),
    "Dirichlet": lambda: dist.Dirichlet(jnp.array([1.0, 2.0, 3.0])),
    "LKJCholesky": lambda: dist.LKJCholesky(3, 2.0),
    "LKJ": lambda: dist.LKJ(3, 2.0),
    "Wishart": lambda: dist.WishartCholesky(4.0, jnp.eye(2)),
    "VonMises": lambda: dist.VonMises(0.5, 2.0),
    "ZeroSumNormal": lambda: dist.ZeroSumNormal(1.3, (3,)),
    "ImproperUniform": lambda: dist.ImproperUniform(constraints.positive, (2,), (3,)),
    "ordered": lambda: dist.ImproperUniform(constraints.ordered_vector, (), (3,)),
    "half-line": lambda: dist.ImproperUniform(constraints.greater_than(1.5), (), ()),
    "transformed": lambda: dist.TransformedDistribution(
        dist.Normal().expand([3]).to_event(1), transforms.OrderedTransform()
    ),
    "MultivariateNormal": lambda: dist.MultivariateNormal(ROW, jnp.eye(3)),
    "MixtureSameFamily": lambda: dist.MixtureSameFamily(
        dist.Categorical(jnp.array([0.3, 0.7])), dist.Normal(ROW[:2], 0.5)
    ),
    "GaussianRandomWalk": lambda: dist.GaussianRandomWalk(0.7, 4),
    "RelaxedBernoulli": lambda: dist.RelaxedBernoulli(0.7, 0.4),
    "to_event": lambda: dist.Gamma(2.0, 1.0).expand([2, 3]).to_event(1),
    "masked": lambda: dist.Gamma(2.0, 1.0).expand([3]).mask(MASK),
}

LEARNED = {
    "real": (TWO, constraints.real),
    "positive": (TWO, constraints.positive),
    "nonnegative": (TWO, constraints.nonnegative),
    "unit interval": (TWO, constraints.unit_interval),
    "interval": (TWO, constraints.interval(-1.0, 2.5)),
    "greater than": (TWO, constraints.greater_than(0.5)),
    "less than": (TWO, constraints.less_than(0.5)),
    "circular": (TWO, constraints.circular),
    "simplex": (TWO, constraints.simplex),
    "ordered": (TWO, constraints.ordered_vector),
    "positive ordered": (TWO, constraints.positive_ordered_vector),
    "correlation": (ONE, constraints.corr_cholesky),
    "zero sum": (TWO, constraints.zero_sum(1)),
}


def _on_support(fn):
    def model(y):
        x = numpyro.sample("x", fn)
        observe(x, y)

    return model


def _masked_on_support(fn):
    def model(y):
        with handlers.scale(scale=1.7), handlers.mask(mask=False):
            x = numpyro.sample("x", fn)
        observe(x, y)

    return model


def _with_a_learned_site(make):
    def model(y):
        b = numpyro.sample("b", make())
        observe(jnp.append(jnp.ravel(b), numpyro.sample("x", LINE)), y)

    return model


for _name, _make in ORDINARY.items():
    MODELS[f"ordinary: {_name}"] = Row(_with_a_learned_site(_make), (Y,), {})
for _name, (_density, _support) in LEARNED.items():
    _fn = rtk.LearnedPrior(_density, support=_support)
    MODELS[f"learned on: {_name}"] = Row(_on_support(_fn), (Y,), {})
    MODELS[f"masked, learned on: {_name}"] = Row(_masked_on_support(_fn), (Y,), {})

# -- what NUTS refuses --------------------------------------------------------------------


@refused("plates .'n'. with `subsample_size`.*Use all rows", ROW)
def subsample(y):
    batches(y)


@refused("plates .'n'. with `subsample_size`", ROW)
def subsample_in_a_scope(y):
    handlers.scope(batches, prefix="a", hide_types=["plate"])(y)


class Jitter(Messenger):
    """A handler of the user's own that needs the key of a site."""

    def postprocess_message(self, msg):
        if msg["type"] == "sample" and not msg["is_observed"]:
            msg["value"] += 0.1 * jr.normal(msg["kwargs"]["rng_key"])


@refused("draw nothing at random.*runs without a random seed", Y)
def handler_that_draws(y):
    with Jitter():
        x = numpyro.sample("x", PRIOR)
    observe(x, y)


@refused("Delta distribution; use `numpyro.deterministic`", Y)
def delta(y):
    numpyro.sample("d", dist.Delta(0.3))
    observe(numpyro.sample("x", PRIOR), y)


@refused("'k' is discrete.*Sum it out", Y)
def discrete(y):
    k = numpyro.sample("k", dist.Bernoulli(0.3), infer={"enumerate": "parallel"})
    observe(k + numpyro.sample("x", PRIOR), y)


@refused("'k' is discrete", Y)
def discrete_without_bounds(y):
    k = numpyro.sample("k", dist.Poisson(0.3))
    observe(k + numpyro.sample("x", PRIOR), y)


@refused("spherical sample site 'd'.*ProjectedNormalReparam", Y)
def sphere(y):
    d = numpyro.sample("d", dist.ProjectedNormal(jnp.ones(3)))
    observe(d[0] + numpyro.sample("x", PRIOR), y)


@refused("must be traceable by JAX", Y)
def python_control_flow(y):
    x = numpyro.sample("x", PRIOR)
    observe(x if x[0] > 0 else -x, y)


@refused("`log_prob` needs an energy", Y)
def score_alone_inside_another_distribution(y):
    class ScoreOnly:
        event_shape = (2,)
        score = TWO.score

    prior = rtk.LearnedPrior(ScoreOnly())
    affine = transforms.AffineTransform(1.0, -2.0)
    observe(numpyro.sample("x", dist.TransformedDistribution(prior, [affine])), y)


@refused("`forward_mode_differentiation` must be True", Y)
def while_loop(y):
    x = numpyro.sample("x", PRIOR)
    observe(jax.lax.while_loop(lambda s: s < 2.0, lambda s: 1.5 * s + 1.0, x[0]), y)


@refused("`forward_mode_differentiation` must be True", Y)
def while_loop_under_a_latent_condition(y):
    c = numpyro.sample("c", dist.Normal(0.3, 0.8))
    c = jax.lax.while_loop(lambda s: s < 2.0, lambda s: 1.5 * s + 1.0, c)
    observe(numpyro.sample("x", rtk.LearnedPrior(Moving(), condition=c)), y)
