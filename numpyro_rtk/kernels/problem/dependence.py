"""What of a program's output is computed from its argument."""

from collections.abc import Callable
from typing import Any

import jax
from jax.extend.core import Literal

__all__ = ["depends_on", "has_references"]


def depends_on(function: Callable[[jax.Array], Any], x: jax.Array) -> Any:
    """Which outputs depend on the argument: a tree of booleans; where in doubt, True.

    By what is computed from what: a derivative would miss a step or a rounding.
    """
    closed, outputs = jax.make_jaxpr(function, return_shape=True)(x)
    flags = _reached(closed.jaxpr, [True] * len(closed.jaxpr.invars))
    if has_references(closed.jaxpr):
        flags = [True] * len(flags)
    return jax.tree.unflatten(jax.tree.structure(outputs), flags)


def has_references(jaxpr: Any) -> bool:
    """Whether some step reads or writes a place, which no variable's equation shows."""
    for equation in jaxpr.eqns:
        variables = (*equation.invars, *equation.outvars)
        if any(hasattr(variable.aval, "inner_aval") for variable in variables):
            return True
        for inner in jax.tree.leaves(
            list(equation.params.values()), is_leaf=_is_program
        ):
            program = getattr(inner, "jaxpr", inner)
            if _is_program(program) and has_references(program):
                return True
    return False


def _is_program(value: Any) -> bool:
    return hasattr(getattr(value, "jaxpr", value), "eqns")


def _reached(jaxpr: Any, inputs: list[bool]) -> list[bool]:
    """Which outputs of a program depend on these of its inputs."""
    reached = {v for v, flag in zip(jaxpr.invars, inputs, strict=True) if flag}
    is_reached = lambda v: not isinstance(v, Literal) and v in reached
    for equation in jaxpr.eqns:
        flags = [is_reached(v) for v in equation.invars]
        if equation.primitive.name == "scan":
            flags = _reached_by_scan(equation.params, flags)
        else:
            flags = [any(flags)] * len(equation.outvars)
        reached.update(
            v for v, flag in zip(equation.outvars, flags, strict=True) if flag
        )
    return [is_reached(v) for v in jaxpr.outvars]


def _reached_by_scan(params: dict, inputs: list[bool]) -> list[bool]:
    """The same of ``lax.scan``, whose outputs may be constants that a step passes on."""
    first, last = params["num_consts"], params["num_consts"] + params["num_carry"]
    while True:
        outputs = _reached(params["jaxpr"].jaxpr, inputs)
        carry = [a or b for a, b in zip(inputs[first:last], outputs, strict=False)]
        if carry == inputs[first:last]:
            return outputs
        inputs = [*inputs[:first], *carry, *inputs[last:]]
