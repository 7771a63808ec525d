"""Every model means to a kernel what it means to NUTS, or both refuse it.

At noise zero the kernel's log density must be minus NumPyro's potential, with gradient.
The models are rows of ``models.py``.
"""

import warnings

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from numpyro import handlers
from numpyro.infer import initialization, util

import numpyro_rtk as rtk
from numpyro_rtk.core.warmup.adapt import Frame
from numpyro_rtk.kernels.problem import learned, noted, problem as problem_module, runs
from numpyro_rtk.paths import levels_of
from tests.kernels.models import MODELS, REFUSALS, Row

LEVEL = jax.tree.map(lambda leaf: leaf[0], levels_of(np.array([0.0, 1.0]), 1.0))
NUM_POINTS = 3


def bind(row: Row, **options):
    """The problem as a kernel sees it, at a scaling that is not the prior's."""
    problem = rtk.RTKReplicaExchange(row.model, **options)._problem
    problem.setup(jr.key(1), row.args, row.kwargs)
    n = problem.num_ordinary
    loc, scale = jnp.linspace(-0.3, 0.4, n), jnp.linspace(0.6, 1.7, n)
    frame = Frame(loc, scale, jnp.linspace(-0.2, 0.3, problem.dim))
    return problem, problem.bind(row.args, row.kwargs, frame)


def prepared(row: Row):
    """The model as ``initialize_model`` prepares it for NUTS, without its search."""
    seeded = handlers.substitute(
        handlers.seed(row.model, jr.key(0)),
        substitute_fn=initialization.init_to_uniform,
    )
    trace = handlers.trace(seeded).get_trace(*row.args, **row.kwargs)
    return util._prepare_model_for_potential(row.model, trace, enum=False)


def numpyro_potential(row: Row):
    model = prepared(row)
    return lambda z: util.potential_energy(model, row.args, row.kwargs, z)


def difference(row: Row, **options):
    """Largest deviation of value and gradient over random points, relative."""
    problem, bound = bind(row, **options)
    potential = numpyro_potential(row)

    def both(u):
        ours = bound.path(u, LEVEL)
        with_gradient = jax.value_and_grad
        if options.get("forward_mode_differentiation"):
            with_gradient = lambda f: lambda u: (f(u), jax.jacfwd(f)(u))
        theirs = with_gradient(lambda u: -potential(bound.unflatten(u)))(u)
        return (-bound.energy(ours.log_density), ours.score), theirs

    u = jr.normal(jr.key(5), (NUM_POINTS, problem.dim))
    ours, theirs = jax.jit(jax.vmap(both))(u)
    assert all(np.isfinite(leaf).all() for leaf in theirs)
    deviation = lambda a, b: float(np.max(np.abs(a - b) / (1.0 + np.abs(b))))
    return deviation(ours[0], theirs[0]), deviation(ours[1], theirs[1])


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.filterwarnings(
    "ignore:Continuous inference poorly handles circular",
    "ignore:init_to_uniform.* skipping",
)
def test_the_log_density_is_numpyro_s_own(name):
    value, gradient = difference(MODELS[name])
    assert value < 3e-4
    assert gradient < 3e-3


def test_the_table_is_long_enough():
    assert len(MODELS) + len(REFUSALS) > 120


WHAT_IS_WHAT = {
    "several learned": (["x", "z"], [], False),
    "condition is latent": (["x"], ["c"], True),
    "observed learned": ([], ["loc"], False),
    "transformed": ([], ["x"], False),
    "scan with the prior closed over": (["e"], [], False),
    "scan with the prior as an argument": (["e"], [], False),
    "scan with a plate inside": (["e"], [], False),
    "scan under a carried condition": (["x"], ["c"], True),
    "scan of a wrapped prior": ([], ["e"], False),
    "cond on a latent site": (["x"], ["b"], True),
    "cond between noise processes": ([], ["b", "x"], False),
}


@pytest.mark.parametrize("name", WHAT_IS_WHAT)
def test_what_is_learned_and_what_ordinary(name):
    """Learned sites are annealed along their own noise levels: where that can be."""
    problem, _ = bind(MODELS[name])
    names = lambda sites: [site.name for site in sites]
    flat = problem.noted.flat
    found = names(flat.learned), names(flat.ordinary), problem.is_coupled
    assert found == WHAT_IS_WHAT[name]


@pytest.mark.parametrize(
    "name", ["alone", "while loop", "while loop under a latent condition"]
)
def test_it_is_in_forward_mode(name):
    row = MODELS[name] if name in MODELS else REFUSALS[name]
    assert max(difference(row, forward_mode_differentiation=True)) < 3e-3


MASKED = ("handler: mask", "handler: scale", "masked, learned on: simplex")


@pytest.mark.parametrize("name", MASKED)
def test_a_mask_that_is_not_heeded_is_seen(monkeypatch, name):
    """Negative control: masked and scaled sites counted in full, Jacobian and all."""
    for module in (noted, learned):
        monkeypatch.setattr(module, "is_plain", lambda site: True)
    assert min(difference(MODELS[name])) > 0.01


def test_a_jacobian_that_is_lost_is_seen(monkeypatch):
    """Negative control: the Jacobian of an ordinary site on the half-line."""

    def terms(model, args, kwargs, values, hidden):
        values = {**values, "sigma": jnp.exp(values["sigma"])}
        rest = handlers.block(handlers.substitute(model, data=values), hide=["x"])
        return util.compute_log_probs(rest, args, kwargs, {}, sum_log_prob=False)

    monkeypatch.setattr(runs, "log_terms", terms)
    assert min(difference(MODELS["beside an ordinary site"])) > 0.01


def test_randomness_that_a_seed_hides_is_seen(monkeypatch):
    """Negative control: a model that is seeded, as kernels do that only want it to run."""
    seeded = lambda model, args, kwargs, has_params: runs.Run(
        handlers.seed(model, rng_seed=0), args, kwargs
    )
    monkeypatch.setattr(problem_module, "prepared", seeded)
    assert min(difference(MODELS["prng key"])) > 0.01
    bind(REFUSALS["subsample"])


def run_once_in_nuts(row: Row):
    found = util.initialize_model(jr.key(0), row.model, model_args=row.args)
    jax.jit(jax.grad(found.potential_fn))(found.param_info.z)


def run_once(row: Row):
    problem, bound = bind(row)
    bound.path(jnp.zeros(problem.dim), LEVEL)


@pytest.mark.parametrize("name", REFUSALS)
def test_what_numpyro_refuses_is_refused(name):
    row = REFUSALS[name]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(Exception):  # noqa: B017, PT011  whatever NumPyro says
            run_once_in_nuts(row)
    with pytest.raises((TypeError, ValueError), match=row.message):
        run_once(row)
