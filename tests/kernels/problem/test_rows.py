"""Rows of a plate: which models are a product over them, and never a wrong one.

Each model says how many rows it must fall into; 1 is one that couples its rows, or that is
not known to leave them alone. Where there are several, values and gradients of a row must
not move with another's coordinates, to the last bit, and add up to the joint's.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro import handlers

import numpyro_rtk as rtk
from numpyro_rtk.kernels.problem.alignment import aligned_with
from numpyro_rtk.kernels.problem.problem import Problem
from tests.kernels.densities import Moving
from tests.kernels.models import MODELS

R = 4
PAIR = rtk.GaussianMixture(
    [0.3, 0.7], [[-1.5, 0.5], [1.0, -0.5]], [np.eye(2) * 0.4, np.eye(2) * 0.2]
)
PRIOR = rtk.LearnedPrior(PAIR)
LINE = rtk.LearnedPrior(rtk.GaussianMixture([1.0], [[0.2]], [[[0.5]]]))
Y = jnp.linspace(-1.0, 1.0, R)
DESIGN = jnp.array([[0.3, -1.0], [0.7, 0.2], [0.1, 0.4]])


class MovingScore:
    """:class:`Moving`, of which only the score is known."""

    event_shape, condition_shape = Moving.event_shape, Moving.condition_shape

    def given(self, c):
        density = Moving().given(c)

        class Score:
            event_shape = density.event_shape
            score = staticmethod(density.score)

        return Score()


class Row(NamedTuple):
    model: Any
    num: int


TABLE: dict[str, Row] = {}


def falls_into(num):
    def add(model):
        TABLE[model.__name__.replace("_", " ")] = Row(model, num)
        return model

    return add


def rows(dim=None):
    return numpyro.plate("rows", R, dim=dim)


def see_three_numbers(location):
    """Of each row, whose plate this is in."""
    likelihood = dist.Normal(location, 0.5).to_event(1)
    numpyro.sample("y", likelihood, obs=jnp.ones((R, 3)))


# -- products over rows ----------------------------------------------------------------


@falls_into(R)
def one_coordinate():
    with rows():
        x = numpyro.sample("x", PRIOR)
        numpyro.sample("y", dist.Normal(x[..., 1], 0.5), obs=Y)


@falls_into(R)
def a_matrix_for_all_rows():
    with rows():
        x = numpyro.sample("x", PRIOR)
        see_three_numbers(x @ DESIGN.T)


@falls_into(R)
def an_einsum():
    with rows():
        x = numpyro.sample("x", PRIOR)
        see_three_numbers(jnp.einsum("ab,rb->ra", DESIGN, x))


@falls_into(R)
def a_function_mapped():
    with rows():
        x = numpyro.sample("x", PRIOR)
        location = jax.vmap(lambda one: jnp.sin(one[0]) + jnp.logaddexp(one[1], 0.0))(x)
        numpyro.sample("y", dist.StudentT(4.0, location, 0.5), obs=Y)


@falls_into(R)
def a_correlated_likelihood():
    with rows():
        x = numpyro.sample("x", PRIOR)
        covariance = jnp.array([[1.0, 0.3], [0.3, 0.5]])
        y = jnp.stack([Y, -Y], axis=1)
        numpyro.sample("y", dist.MultivariateNormal(x, covariance), obs=y)


@falls_into(R)
def ordinary_sites_in_the_plate():
    with rows():
        x = numpyro.sample("x", PRIOR)
        scale = numpyro.sample("scale", dist.LogNormal(-0.5, 0.4))
        numpyro.sample("y", dist.Normal(x[..., 0], scale), obs=Y)


@falls_into(R)
def two_learned_sites():
    with rows():
        x = numpyro.sample("x", PRIOR)
        w = numpyro.sample("w", LINE)
        numpyro.sample("y", dist.Normal(x[..., 0] * w[..., 0], 0.5), obs=Y)


@falls_into(R)
def missing_rows():
    with rows():
        x = numpyro.sample("x", PRIOR)
        with handlers.mask(mask=jnp.array([True, False, True, True])):
            numpyro.sample("y", dist.Normal(x[..., 0], 0.5), obs=Y)


@falls_into(R)
def missing_columns():
    with rows():
        x = numpyro.sample("x", PRIOR)
        seen = jnp.array([[1, 0], [1, 1], [0, 1], [0, 0]], bool)
        likelihood = dist.Normal(x, 0.3).mask(seen).to_event(1)
        numpyro.sample("y", likelihood, obs=jnp.ones((R, 2)))


@falls_into(R)
def a_factor_by_row():
    with rows():
        x = numpyro.sample("x", PRIOR)
        numpyro.factor("f", -jnp.sum(jnp.square(x), axis=-1))


@falls_into(R)
def a_term_that_no_row_has_a_say_in():
    numpyro.factor("constant", jnp.array(2.0))
    with rows():
        x = numpyro.sample("x", PRIOR)
        numpyro.sample("y", dist.Poisson(jnp.exp(x[..., 0])), obs=jnp.arange(R))


@falls_into(R)
def rows_not_in_the_last_place():
    with numpyro.plate("columns", 3, dim=-1), rows(dim=-2):
        x = numpyro.sample("x", LINE)
        y = jnp.broadcast_to(Y[:, None], (R, 3))
        numpyro.sample("y", dist.Normal(x[..., 0], 0.5), obs=y)


@falls_into(R)
def a_mixture_likelihood():
    with rows():
        x = numpyro.sample("x", PRIOR)
        weights = dist.Categorical(probs=jnp.array([0.4, 0.6]))
        numpyro.sample("y", dist.MixtureSameFamily(weights, dist.Normal(x, 0.5)), obs=Y)


@falls_into(R)
def steps_through_time_within_a_row():
    def step(state, _):
        state = state + 0.1 * jnp.sin(state)
        return state, state[:, 0]

    with rows():
        x = numpyro.sample("x", PRIOR)
        _, path = jax.lax.scan(step, x, None, length=3)
        see_three_numbers(path.T)


@falls_into(R)
def sorted_within_a_row():
    with rows():
        x = numpyro.sample("x", PRIOR)
        numpyro.sample("y", dist.Normal(jnp.sort(x, axis=-1)[..., 0], 0.5), obs=Y)


@falls_into(R)
def a_reparameterised_site():
    with (
        rows(),
        handlers.reparam(config={"z": numpyro.infer.reparam.LocScaleReparam(0)}),
    ):
        x = numpyro.sample("x", PRIOR)
        z = numpyro.sample("z", dist.Normal(x[..., 0], 0.3))
        numpyro.sample("y", dist.Normal(z, 0.5), obs=Y)


@falls_into(R)
def a_condition_by_row():
    with rows():
        x = numpyro.sample("x", rtk.LearnedPrior(Moving(), condition=Y))
        numpyro.sample("y", dist.Normal(x[..., 0], 0.5), obs=Y)


@falls_into(R)
def classes():
    with rows():
        x = numpyro.sample("x", PRIOR)
        logits = jnp.stack([x[..., 0], x[..., 1], 0.0 * x[..., 0]], axis=-1)
        numpyro.sample(
            "y", dist.Categorical(logits=logits), obs=jnp.array([0, 2, 1, 1])
        )


@falls_into(R)
def printed_while_it_runs():
    with rows():
        x = numpyro.sample("x", PRIOR)
        jax.debug.print("x: {}", x)
        numpyro.sample("y", dist.Normal(x[..., 0], 0.5), obs=Y)


# -- rows that are coupled, or not known not to be -------------------------------------


@falls_into(1)
def a_shared_scale():
    scale = numpyro.sample("scale", dist.LogNormal(-0.5, 0.4))
    with rows():
        x = numpyro.sample("x", PRIOR)
        numpyro.sample("y", dist.Normal(x[..., 0], scale), obs=Y)


@falls_into(1)
def a_sum_over_rows():
    with rows():
        x = numpyro.sample("x", PRIOR)
    numpyro.sample("y", dist.Normal(jnp.sum(x[..., 0]), 0.5), obs=0.3)


@falls_into(1)
def a_mean_taken_away():
    with rows():
        x = numpyro.sample("x", PRIOR)
        numpyro.sample("y", dist.Normal(x[..., 0] - jnp.mean(x[..., 0]), 0.5), obs=Y)


@falls_into(1)
def the_largest_row():
    with rows():
        x = numpyro.sample("x", PRIOR)
        numpyro.sample("y", dist.Normal(x[..., 0], 0.5), obs=Y)
    numpyro.factor("f", -jnp.square(jnp.max(x)))


@falls_into(1)
def a_switch_for_all_rows():
    with rows():
        x = numpyro.sample("x", PRIOR)
        sign = jnp.where(jnp.sum(x) > 1e6, -1.0, 1.0)  # no perturbation would show it
        numpyro.sample("y", dist.Normal(sign * x[..., 0], 0.5), obs=Y)


@falls_into(1)
def the_neighbours():
    with rows():
        x = numpyro.sample("x", PRIOR)
        numpyro.sample("y", dist.Normal(jnp.roll(x[..., 0], 1), 0.5), obs=Y)


@falls_into(1)
def rows_upside_down():
    with rows():
        x = numpyro.sample("x", PRIOR)
        numpyro.sample("y", dist.Normal(x[::-1, 0], 0.5), obs=Y)


@falls_into(1)
def rows_by_an_index():
    with rows():
        x = numpyro.sample("x", PRIOR)
    with numpyro.plate("data", 6):
        owner = jnp.array([0, 0, 1, 2, 3, 3])
        numpyro.sample("y", dist.Normal(x[owner, 0], 0.5), obs=jnp.ones(6))


@falls_into(1)
def an_index_that_keeps_rows_but_does_not_say_so():
    with rows():
        x = numpyro.sample("x", PRIOR)
        kind = jnp.array([1, 0, 0, 1])
        numpyro.sample("y", dist.Normal(x[jnp.arange(R), kind], 0.5), obs=Y)


@falls_into(1)
def a_walk_over_rows():
    with rows():
        x = numpyro.sample("x", PRIOR)
        numpyro.sample("y", dist.Normal(jnp.cumsum(x[..., 0]), 0.5), obs=Y)


@falls_into(1)
def a_regression_through_a_matrix():
    mixing = jnp.linspace(-1.0, 1.0, R * R).reshape(R, R)
    with rows():
        x = numpyro.sample("x", PRIOR)
        numpyro.sample("y", dist.Normal(mixing @ x[..., 0], 0.5), obs=Y)


@falls_into(1)
def rows_in_another_order():
    with rows():
        x = numpyro.sample("x", PRIOR)
        numpyro.sample("y", dist.Normal(jnp.sort(x[..., 0]), 0.5), obs=Y)


@falls_into(1)
def products_of_rows():
    with rows():
        x = numpyro.sample("x", PRIOR)
    numpyro.factor("f", -jnp.square(x @ x.T))


@falls_into(1)
def a_loop_that_waits_for_all_rows():
    with rows():
        x = numpyro.sample("x", PRIOR)
        grown = jax.lax.while_loop(
            lambda v: jnp.max(v) < 3.0, lambda v: v + 1.0, jax.lax.stop_gradient(x)
        )
        numpyro.sample("y", dist.Normal(x[..., 0] + grown[..., 0], 0.5), obs=Y)


@falls_into(1)
def a_site_outside_the_plate():
    w = numpyro.sample("w", LINE)
    with rows():
        x = numpyro.sample("x", PRIOR)
        numpyro.sample("y", dist.Normal(x[..., 0] + w[0], 0.5), obs=Y)


@falls_into(1)
def a_scaled_prior():
    """NumPyro counts it as the base does not: left whole."""
    with rows(), handlers.scale(scale=2.0):
        x = numpyro.sample("x", PRIOR)
        numpyro.sample("y", dist.Normal(x[..., 0], 0.5), obs=Y)


@falls_into(1)
def a_condition_by_row_of_a_score_alone():
    """The law of its draws follows the spreads, which rows would have in common."""
    with rows():
        x = numpyro.sample("x", rtk.LearnedPrior(MovingScore(), condition=Y))
        numpyro.sample("y", dist.Normal(x[..., 0], 0.5), obs=Y)


@falls_into(1)
def one_joint_prior_over_the_plate():
    joint = rtk.GaussianMixture([1.0], [np.zeros(R)], [np.eye(R) + 0.3])
    x = numpyro.sample("x", rtk.LearnedPrior(joint))
    with rows():
        numpyro.sample("y", dist.Normal(x, 0.5), obs=Y)


@jax.custom_vjp
def clipped(x):
    """Rows as they are, with a gradient that all of them scale."""
    return x


clipped.defvjp(lambda x: (x, None), lambda _, g: (g / jnp.linalg.norm(g),))


@jax.custom_jvp
def steered(x):
    return x


steered.defjvp(lambda x, dx: (x[0], dx[0] * jnp.sum(x[0])))


@falls_into(1)
def a_gradient_that_couples_rows():
    with rows():
        x = numpyro.sample("x", PRIOR)
        numpyro.sample("y", dist.Normal(clipped(x)[..., 0], 0.5), obs=Y)


@falls_into(1)
def a_derivative_that_couples_rows():
    with rows():
        x = numpyro.sample("x", PRIOR)
        numpyro.sample("y", dist.Normal(steered(x)[..., 0], 0.5), obs=Y)


@falls_into(1)
def a_sum_that_is_written_down():
    new_ref = getattr(jax, "new_ref", None)
    with rows():
        x = numpyro.sample("x", PRIOR)
        total = jnp.sum(x[..., 0])
        if new_ref is not None:
            kept = new_ref(jnp.zeros(()))
            kept[...] = total
            total = kept[...]
        numpyro.sample("y", dist.Normal(x[..., 0] - total, 0.5), obs=Y)


@falls_into(1)
def a_plate_of_one():
    with numpyro.plate("rows", 1):
        x = numpyro.sample("x", PRIOR)
        numpyro.sample("y", dist.Normal(x[..., 0], 0.5), obs=Y[:1])


def problem_by_row(model, args=(), kwargs=None):
    problem = Problem(model)
    problem.setup(jr.key(0), args, kwargs or {}, by_row=True)
    return problem


def assert_independent(problem, args=(), kwargs=None):
    """Each row's values and gradients are its own; all of them together the joint's."""
    rows, bound = problem.rows, problem.bind(args, kwargs or {}, problem.frame())
    x = jr.normal(jr.key(3), rows.shape)
    t = jnp.asarray(0.3)
    likelihood, base = bound.by_row.log_likelihood, bound.by_row.base

    @jax.jit
    def facts(x):
        gradient = jax.grad(lambda x: jnp.sum(likelihood(x)))(x)
        found = base(x, t)
        return likelihood(x), gradient, found.log_density, found.score

    before = [np.asarray(leaf) for leaf in facts(x)]
    assert all(len(leaf) == rows.num for leaf in before)
    for r in range(rows.num):
        after = [np.asarray(leaf) for leaf in facts(x.at[r].add(0.7))]
        others = np.arange(rows.num) != r
        for old, new in zip(before, after, strict=True):
            np.testing.assert_array_equal(old[others], new[others])
        assert np.any(before[2][r] != after[2][r])
    whole = lambda x: bound.log_likelihood(rows.join(x))
    other = jr.normal(jr.key(4), rows.shape)
    joint = float(whole(x) - whole(other))
    by_row = float(jnp.sum(likelihood(x) - likelihood(other)))
    np.testing.assert_allclose(by_row, joint, rtol=2e-5, atol=2e-5)
    np.testing.assert_allclose(
        np.sum(before[2]), bound.base(rows.join(x), t).log_density, rtol=1e-5
    )
    np.testing.assert_array_equal(rows.split(rows.join(x)), x)


@pytest.mark.parametrize("name", TABLE)
def test_rows_are_found_where_they_are_independent(name):
    model, num = TABLE[name]
    problem = problem_by_row(model)
    assert problem.rows.num == num
    if num > 1:
        assert_independent(problem)


@pytest.mark.parametrize("name", MODELS)
def test_no_model_of_the_large_table_falls_apart_wrongly(name):
    row = MODELS[name]
    problem = problem_by_row(row.model, row.args, row.kwargs)
    if problem.rows.num > 1:
        assert_independent(problem, row.args, row.kwargs)


def test_a_wrong_plate_would_be_noticed():
    """Negative control of the check: rows of a model that couples them."""
    problem = problem_by_row(one_coordinate)
    other = Problem(a_mean_taken_away)
    other.setup(jr.key(0), (), {})
    other.rows = problem.rows
    with pytest.raises(AssertionError):
        assert_independent(other)


MIXING = {
    "reduced": lambda x: jnp.sum(x, axis=0),
    "windowed": lambda x: jax.lax.reduce_window(
        x, 0.0, jax.lax.add, (2, 1), (1, 1), "SAME"
    ),
    "reduced by a function": lambda x: jax.lax.reduce(
        x, 0.0, lambda a, b: a + b, dimensions=(0,)
    ),
    "scattered": lambda x: jnp.zeros_like(x).at[jnp.array([1, 0, 3, 2])].set(x),
    "transformed": lambda x: jnp.fft.fft(x, axis=0).real,
    "reshaped": lambda x: x.reshape(2, R),
    "merged": lambda x: x.reshape(-1),
    "gone through": lambda x: jax.lax.scan(lambda c, v: (c + v, c), jnp.zeros(2), x)[1],
    "taken in part": lambda x: x[1:],
    "taken where a row says": lambda x: x[jnp.argmax(x[:, 0])],
    "taken by another row": lambda x: jnp.take_along_axis(
        x, jnp.ones((1, 2), int), axis=0
    ),
    "looked up in the rows": lambda x: x[jnp.argmax(x, axis=1)],
    "tiled over rows": lambda x: jnp.tile(x, (2, 1)),
    "a matrix of rows": lambda x: jnp.linalg.solve(x[:2, :2], x[:2]),
    "called back": lambda x: jax.pure_callback(
        lambda v: v, jax.ShapeDtypeStruct(x.shape, x.dtype), x
    ),
}


@pytest.mark.parametrize("function", MIXING.values(), ids=MIXING)
def test_operations_that_may_mix_rows_are_taken_to(function):
    at = lambda values: {"out": function(values["x"])}
    assert aligned_with(at, {"x": jnp.ones((R, 2))}, {"x": 0}, R) is None


KEEPING = {
    "moved": (lambda x: jnp.moveaxis(x, 0, 1), 1),
    "folded": (lambda x: x.reshape(R, 2, 1, 1), 0),
    "stacked": (lambda x: jnp.stack([x, 2.0 * x]), 1),
    "split": (lambda x: jnp.split(x, 2, axis=1)[0], 0),
    "of one column": (lambda x: x[:, 1], 0),
    "of columns": (lambda x: x[:, jnp.array([1, 1, 0])], 0),
    "solved for": (
        lambda x: jax.scipy.linalg.solve_triangular(jnp.eye(2), x.T, lower=True),
        1,
    ),
    "convolved": (lambda x: jax.vmap(lambda v: jnp.convolve(v, jnp.ones(2)))(x), 0),
    "transformed": (lambda x: jnp.fft.rfft(x, axis=1).real, 0),
    "chosen among": (lambda x: jax.lax.cond(Y[0] > 0, jnp.sin, jnp.cos, x), 0),
    "taken by row": (
        lambda x: jnp.take_along_axis(x, jnp.ones((R, 1), int), axis=1),
        0,
    ),
    "looked up": (lambda x: Y[jnp.argmax(x, axis=1)], 0),
    "tiled": (lambda x: jnp.tile(x, (1, 3)), 0),
    "checkpointed": (lambda x: jax.checkpoint(lambda x: jnp.sin(x) ** 2)(x), 0),
    "a gradient": (jax.vmap(jax.grad(lambda v: jnp.sum(jnp.sin(v) * v))), 0),
    "a network": (jax.vmap(lambda v: jax.nn.softmax(jax.nn.silu(DESIGN @ v))), 0),
}


@pytest.mark.parametrize(("function", "axis"), KEEPING.values(), ids=KEEPING)
def test_operations_that_keep_rows(function, axis):
    at = lambda values: {"out": function(values["x"]), "constant": jnp.ones(3)}
    found = aligned_with(at, {"x": jnp.ones((R, 2))}, {"x": 0}, R)
    assert found == {"out": axis}
