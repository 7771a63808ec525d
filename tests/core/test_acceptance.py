"""Changes of a log density from scores: degree, order of error, antisymmetry."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from numpyro_rtk.core import acceptance as rules
from numpyro_rtk.core.segment import Evaluation

START, MOVE = np.array([0.3, -0.5]), np.array([0.7, 1.1])


def polynomial(degree):
    """With every coefficient of a line through it alive, so nothing cancels."""

    def density(z):
        u, v = z[0] + 0.3 * z[1], z[1] - 0.2 * z[0]
        return sum((0.4 * u + 0.9) ** k - (0.5 * v) ** k for k in range(1, degree + 1))

    return density


def wiggly(z):
    return jnp.sin(2.0 * z[0] + 0.3) * jnp.exp(0.4 * z[1]) - 0.2 * z[1] ** 4


def target_of(density):
    return lambda z: Evaluation(density(z), jax.grad(density)(z))


def trapezoid(density, start, end):
    score = jax.grad(density)
    return rules.trapezoid(start, end, score(start), score(end))


def simpson_midpoint(density, start, end):
    score = jax.grad(density)
    middle = score(0.5 * (start + end))
    return rules.simpson_midpoint(start, end, score(start), middle, score(end))


def simpson_curve(density, start, end):
    """Through a third node off the chord: half-way and to one side."""
    middle = 0.5 * (start + end) + jnp.array([0.2, -0.1])
    return _simpson_nodes(density, start, middle, end)


def _simpson_nodes(density, start, middle, end):
    nodes = jnp.stack([start, middle, end])
    return rules.simpson_curve(nodes, jax.vmap(jax.grad(density))(nodes))


def taylor(density, start, end):
    return rules.taylor(target_of(density), start, end, jax.grad(density)(start))


# rule, degree of the log densities it is exact for, order of its error in the move
RULES = {
    "trapezoid": (trapezoid, 2, 3),
    "simpson_midpoint": (simpson_midpoint, 4, 5),
    "taylor": (taylor, 2, 3),
}


@pytest.mark.parametrize("name", RULES)
def test_exact_for_the_degree_it_promises_and_no_higher(name, x64):
    rule, degree, _ = RULES[name]
    start, end = jnp.asarray(START), jnp.asarray(START + MOVE)
    errors = []
    for density in (polynomial(degree), polynomial(degree + 1)):
        exact = density(end) - density(start)
        errors.append(abs(float(rule(density, start, end) - exact)))
    assert errors[0] < 1e-12
    assert errors[1] > 1e-4


@pytest.mark.parametrize("name", RULES)
def test_error_falls_with_the_order_it_promises(name, x64):
    """Half the move, error divided by about 2**order."""
    rule, _, order = RULES[name]
    start = jnp.asarray(START)
    errors = []
    for size in (0.02, 0.01):
        end = start + size * MOVE
        exact = wiggly(end) - wiggly(start)
        errors.append(float(rule(wiggly, start, end) - exact))
    np.testing.assert_allclose(np.log2(errors[0] / errors[1]), order, atol=0.2)


def test_simpson_along_a_leapfrog_path_is_of_fifth_order(x64):
    """Two leapfrog steps of size h: their nodes lie on a curve, error h**5."""
    score = jax.grad(wiggly)
    errors = []
    for h in (0.04, 0.02):
        nodes, momentum = [jnp.asarray(START)], jnp.asarray(MOVE)
        for _ in range(2):
            momentum = momentum + 0.5 * h * score(nodes[-1])
            nodes.append(nodes[-1] + h * momentum)
            momentum = momentum + 0.5 * h * score(nodes[-1])
        exact = wiggly(nodes[-1]) - wiggly(nodes[0])
        errors.append(float(_simpson_nodes(wiggly, *nodes) - exact))
    np.testing.assert_allclose(np.log2(errors[0] / errors[1]), 5.0, atol=0.3)


@pytest.mark.parametrize("rule", [trapezoid, simpson_midpoint, simpson_curve])
def test_antisymmetric_when_reversed(rule, x64):
    start, end = jnp.asarray(START), jnp.asarray(START + MOVE)
    there, back = rule(wiggly, start, end), rule(wiggly, end, start)
    np.testing.assert_allclose(there, -back, rtol=1e-12)


def test_taylor_is_not_antisymmetric(x64):
    start, end = jnp.asarray(START), jnp.asarray(START + MOVE)
    there, back = taylor(wiggly, start, end), taylor(wiggly, end, start)
    assert abs(float(there + back)) > 0.01


def test_curve_through_nodes_of_a_chord_is_the_midpoint_rule(x64):
    start, end = jnp.asarray(START), jnp.asarray(START + MOVE)
    on_chord = _simpson_nodes(wiggly, start, 0.5 * (start + end), end)
    expected = simpson_midpoint(wiggly, start, end)
    np.testing.assert_allclose(on_chord, expected, rtol=1e-12)


def test_taylor_of_higher_order_tends_to_the_derivatives(x64):
    """Order 3 with a fine spacing is the third Taylor polynomial."""
    density = polynomial(3)
    start, end = jnp.asarray(START), jnp.asarray(START + MOVE)
    exact = density(end) - density(start)
    errors = [
        abs(
            rules.taylor(
                target_of(density),
                start,
                end,
                jax.grad(density)(start),
                order=3,
                spacing=spacing,
            )
            - exact
        )
        for spacing in (1e-2, 1e-3)
    ]
    np.testing.assert_allclose(errors[0] / errors[1], 10.0, rtol=1e-2)


@pytest.mark.parametrize("order", [1, 2, 3])
def test_taylor_evaluates_order_minus_one_times(order):
    calls = []

    def target(z):
        calls.append(z)
        return Evaluation(jnp.zeros(()), -z)

    rules.taylor(target, jnp.zeros(2), jnp.ones(2), jnp.zeros(2), order=order)
    assert len(calls) == order - 1
