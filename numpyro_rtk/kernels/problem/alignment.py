"""Which outputs of a program keep to the rows of its inputs.

An array is *aligned* along an axis where entry r of that axis is computed from row r of the
inputs alone, and from what is the same for all rows. Each operation of the program carries
the axis on, or is not known to; then rows may be mixed, and so they are taken to be. The
program is that of values and derivatives: a function may have a derivative of its own.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax.extend.core import Literal

from numpyro_rtk.kernels.problem.dependence import has_references

__all__ = ["aligned_with"]

_MIXED = -1  # depends on rows, and is not known to keep to them
Axis = int | None
"""Of the rows; None: no row has a say; ``_MIXED``."""

_ELEMENTWISE = frozenset(
    """abs acos acosh add add_any and asin asinh atan atan2 atanh bessel_i0e
    bessel_i1e cbrt ceil clamp convert_element_type copy copy_p cos cosh digamma div
    eq erf erf_inv erfc exp exp2 expm1 floor ge gt igamma igammac igamma_grad_a imag
    integer_pow is_finite le le_to lgamma log log1p logistic lt lt_to max min mul ne
    neg nextafter not or polygamma pow real reduce_precision
    regularized_incomplete_beta rem round rsqrt select_n sign sin sinh sqrt square
    stop_gradient sub tan tanh random_gamma_grad xor zeta""".split()
)
_REDUCTIONS = frozenset(
    """argmax argmin reduce_and reduce_max reduce_min reduce_or reduce_prod reduce_sum
    reduce_xor""".split()
)
_ALONG_ONE_AXIS = {
    name: "axis" for name in ("cumsum", "cumprod", "cummax", "cummin", "cumlogsumexp")
} | {"sort": "dimension"}
# Equations that call a program with their own arguments.
_CALLS = frozenset(
    "checkpoint closed_call core_call custom_jvp_call jit pjit remat remat2".split()
)


def aligned_with(
    function: Callable[[Any], dict], values: dict, axes: dict[str, int], size: int
) -> dict[str, int] | None:
    """The axis of rows in each output that depends on them; None where rows are mixed.

    Args:
        function: of ``values``; returns arrays by name.
        values: arrays by name.
        axes: of the rows in each.
        size: how many rows.
    """
    with_derivative = lambda values: jax.jvp(function, (values,), (values,))
    try:
        closed, (outputs, _) = jax.make_jaxpr(with_derivative, return_shape=True)(
            values
        )
    except Exception:  # whatever a function of the user's may raise without one
        return None
    if has_references(closed.jaxpr):
        return None
    found = _through(closed.jaxpr, jax.tree.leaves({n: axes[n] for n in values}))
    names = jax.tree.leaves({name: name for name in outputs})
    both = zip(names, found, found[len(names) :], strict=False)
    joint = {name: _joint([axis, derivative]) for name, axis, derivative in both}
    aligned = {name: axis for name, axis in joint.items() if axis is not None}
    is_whole = all(
        axis != _MIXED and outputs[name].shape[axis] == size
        for name, axis in aligned.items()
    )
    return aligned if is_whole else None


def _through(jaxpr: Any, inputs: Sequence[Axis]) -> list[Axis]:
    """The axes of a program's outputs, from those of its inputs."""
    known = dict(zip(jaxpr.invars, inputs, strict=True))
    of = lambda v: None if isinstance(v, Literal) else known.get(v)
    for equation in jaxpr.eqns:
        axes = [of(v) for v in equation.invars]
        found: list[Axis] = [None] * len(equation.outvars)
        if any(axis is not None for axis in axes):
            found = _of_equation(equation, axes)
        known.update(zip(equation.outvars, found, strict=True))
    return [of(v) for v in jaxpr.outvars]


def _of_equation(equation: Any, axes: Sequence[Axis]) -> list[Axis]:
    name, count = equation.primitive.name, len(equation.outvars)
    mixed: list[Axis] = [_MIXED] * count
    if _MIXED in axes:
        return mixed
    if name in _RULES:
        return [_RULES[name](equation, axes)] * count
    if name == "scan":
        return _of_scan(equation.params, axes)
    if name == "cond":
        return _of_cond(equation.params, axes, count)
    inner = _inner(equation)
    return mixed if inner is None else _through(inner, axes)


def _inner(equation: Any) -> Any:
    """The program that an equation calls with its own arguments, if it does."""
    if equation.primitive.name not in _CALLS:
        return None
    for name in ("jaxpr", "call_jaxpr", "fun_jaxpr"):
        program = equation.params.get(name)
        program = getattr(program, "jaxpr", program)
        if program is not None and len(program.invars) == len(equation.invars):
            return program
    return None


def _of_scan(params: dict, axes: Sequence[Axis]) -> list[Axis]:
    """Rows must not be what is gone through one after another."""
    first, last = params["num_consts"], params["num_consts"] + params["num_carry"]
    consts, carry, each = axes[:first], axes[first:last], axes[last:]
    each = [axis if axis in (None, _MIXED) else axis - 1 for axis in each]
    while True:
        found = _through(params["jaxpr"].jaxpr, [*consts, *carry, *each])
        after = [_joint([a, b]) for a, b in zip(carry, found, strict=False)]
        if after == carry:
            break
        carry = after
    stacked = [a if a in (None, _MIXED) else a + 1 for a in found[len(carry) :]]
    return [*carry, *stacked]


def _of_cond(params: dict, axes: Sequence[Axis], count: int) -> list[Axis]:
    if axes[0] is not None:
        return list((_MIXED,) * count)
    found = [_through(branch.jaxpr, axes[1:]) for branch in params["branches"]]
    return [_joint(list(branch)) for branch in zip(*found, strict=True)]


def _joint(axes: Sequence[Axis]) -> Any:
    """The one that all have which have any."""
    found = {axis for axis in axes if axis is not None}
    if not found:
        return None
    return found.pop() if len(found) == 1 else _MIXED


def _shape(variable: Any) -> tuple[int, ...]:
    return tuple(variable.aval.shape)


def _elementwise(equation, axes):
    """An argument may have one entry where the others have many, but not of rows."""
    axis, shape = _joint(axes), _shape(equation.outvars[0])
    used = [v for v, a in zip(equation.invars, axes, strict=True) if a is not None]
    fits = axis != _MIXED and all(
        len(_shape(v)) == len(shape) and _shape(v)[axis] == shape[axis] for v in used
    )
    return axis if fits else _MIXED


def _reduced(equation, axes):
    gone, axis = equation.params["axes"], axes[0]
    return _MIXED if axis in gone else axis - sum(a < axis for a in gone)


def _along(equation, axes):
    name = equation.primitive.name
    axis = _joint(axes)
    return _MIXED if equation.params[_ALONG_ONE_AXIS[name]] == axis else axis


def _broadcast(equation, axes):
    axis = equation.params["broadcast_dimensions"][axes[0]]
    size = _shape(equation.invars[0])[axes[0]]
    return axis if equation.params["shape"][axis] == size else _MIXED


def _reshaped(equation, axes):
    """Where the same number of entries stands before the rows, and as many rows."""
    if equation.params.get("dimensions") is not None:
        return _MIXED
    before, after = _shape(equation.invars[0]), _shape(equation.outvars[0])
    place, size = math.prod(before[: axes[0]]), before[axes[0]]
    for axis in range(len(after)):
        if math.prod(after[:axis]) == place and after[axis] == size:
            return axis
    return _MIXED


def _transposed(equation, axes):
    return tuple(equation.params["permutation"]).index(axes[0])


def _squeezed(equation, axes):
    gone = equation.params["dimensions"]
    return _MIXED if axes[0] in gone else axes[0] - sum(a < axes[0] for a in gone)


def _concatenated(equation, axes):
    axis = _joint(axes)
    return _MIXED if equation.params["dimension"] == axis else axis


def _stacked(equation, axes):
    axis = _joint(axes)
    return axis if axis == _MIXED else axis + (equation.params["axis"] <= axis)


def _padded(equation, axes):
    axis = axes[0]
    is_whole = axis is not None and axes[1] is None
    return (
        axis
        if is_whole and equation.params["padding_config"][axis] == (0, 0, 0)
        else _MIXED
    )


def _sliced(equation, axes):
    axis, params = axes[0], equation.params
    size, strides = _shape(equation.invars[0])[axis], params["strides"]
    is_whole = (
        params["start_indices"][axis] == 0 and params["limit_indices"][axis] == size
    )
    is_whole = is_whole and (strides is None or strides[axis] == 1)
    return axis if is_whole else _MIXED


def _dynamically_sliced(equation, axes):
    axis = axes[0]
    if axis is None or any(a is not None for a in axes[1:]):
        return _MIXED
    is_whole = equation.params["slice_sizes"][axis] == _shape(equation.invars[0])[axis]
    return axis if is_whole else _MIXED


def _reversed(equation, axes):
    return _MIXED if axes[0] in equation.params["dimensions"] else axes[0]


def _gathered(equation, axes):
    """All of an array's rows at places that are the same for all, or one place by row."""
    (axis, by), params = axes, equation.params
    numbers = params["dimension_numbers"]
    batching = tuple(getattr(numbers, "operand_batching_dims", ()))
    if by is not None or axis in batching:
        return _gathered_by_row(equation, axes, batching)
    is_whole = params["slice_sizes"][axis] == _shape(equation.invars[0])[axis]
    gone = (*numbers.collapsed_slice_dims, *batching)
    # a place that is out of bounds is moved, rows and all, or filled: rows stay in order
    if not is_whole or axis in gone or axis in numbers.start_index_map:
        return _MIXED
    return numbers.offset_dims[axis - sum(a < axis for a in gone)]


def _gathered_by_row(equation, axes, batching):
    """Each row at places of its own, in an array of its own or in one for all."""
    (axis, by), numbers = axes, equation.params["dimension_numbers"]
    if axis is not None:
        if axis not in batching:
            return _MIXED
        own = numbers.start_indices_batching_dims[batching.index(axis)]
        if by not in (None, own):
            return _MIXED
        by = own
    places = [
        a
        for a in range(len(_shape(equation.outvars[0])))
        if a not in numbers.offset_dims
    ]
    # the last axis of the indices holds a place's coordinates
    return places[by] if by < len(places) else _MIXED


def _tiled(equation, axes):
    """Copies side by side: as often along the rows' axis as 1."""
    before, after = _shape(equation.invars[0]), _shape(equation.outvars[0])
    axis = axes[0]
    is_kept = len(before) == len(after) and before[axis] == after[axis]
    return axis if is_kept else _MIXED


def _multiplied(equation, axes):
    """Rows as copies of a product, or as rows or columns of one with what has none."""
    contracted, copies = equation.params["dimension_numbers"]
    ndims = [len(_shape(v)) for v in equation.invars]
    if all(axis is not None for axis in axes):
        places = [copies[i].index(a) for i, a in enumerate(axes) if a in copies[i]]
        return places[0] if len(places) == 2 and places[0] == places[1] else _MIXED
    side = 0 if axes[0] is not None else 1
    axis = axes[side]
    if axis in contracted[side]:
        return _MIXED
    if axis in copies[side]:
        return copies[side].index(axis)
    used = {*contracted[side], *copies[side]}
    place = [a for a in range(ndims[side]) if a not in used].index(axis)
    left = ndims[0] - len(contracted[0]) - len(copies[0])
    return len(copies[0]) + place + (left if side else 0)


def _split(equation, axes):
    return _MIXED if equation.params["axis"] == axes[0] else axes[0]


def _root(equation, axes):
    """Of copies of a matrix, before its two axes."""
    return axes[0] if axes[0] < len(_shape(equation.invars[0])) - 2 else _MIXED


def _solved(equation, axes):
    """Rows as copies of the system, or as several right sides of one."""
    axis, ndim = _joint(axes), len(_shape(equation.invars[1]))
    if axes[0] is None:
        unknowns = ndim - 2 if equation.params["left_side"] else ndim - 1
        return _MIXED if axis == unknowns else axis
    return axis if axis < ndim - 2 else _MIXED


def _transformed(equation, axes):
    num = len(equation.params["fft_lengths"])
    return axes[0] if axes[0] < len(_shape(equation.invars[0])) - num else _MIXED


def _convolved(equation, axes):
    """Rows as the batch of images."""
    numbers, params = equation.params["dimension_numbers"], equation.params
    is_batch = axes[0] == numbers.lhs_spec[0] and axes[1] is None
    is_batch = is_batch and params["batch_group_count"] == 1
    return numbers.out_spec[0] if is_batch else _MIXED


_RULES: dict[str, Callable[[Any, Sequence[Any]], Axis]] = {
    **dict.fromkeys(_ELEMENTWISE, _elementwise),
    **dict.fromkeys(_REDUCTIONS, _reduced),
    **dict.fromkeys(_ALONG_ONE_AXIS, _along),
    "broadcast_in_dim": _broadcast,
    "cholesky": _root,
    "concatenate": _concatenated,
    "conv_general_dilated": _convolved,
    "dot_general": _multiplied,
    "dynamic_slice": _dynamically_sliced,
    "fft": _transformed,
    "gather": _gathered,
    "pad": _padded,
    "reshape": _reshaped,
    "rev": _reversed,
    "slice": _sliced,
    "split": _split,
    "stack": _stacked,
    "tile": _tiled,
    "squeeze": _squeezed,
    "transpose": _transposed,
    "triangular_solve": _solved,
}
