"""Compiled once: programs that take the model's arguments, kept for the next run.

A user who runs the same kernel on new data of the same shapes should not wait for the
compiler again. Arrays among the arguments are traced, all else is part of the program.

These programs start a run, and run once in it: the first wait of a user is the compiler's.
So it optimises only those that compute much.
"""

import re
import warnings
from collections import OrderedDict
from collections.abc import Callable, Hashable
from functools import cache
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.core import Tracer

__all__ = ["ById", "compiled", "make_room", "text_of"]


class ById:
    """Equal to itself alone; it keeps its object alive, so that no other gets its place."""

    def __init__(self, value: Any):
        self.value = value

    def __hash__(self) -> int:
        return id(self.value)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ById) and self.value is other.value


# Kept in all: NumPyro's driver holds kernels for longer than they are needed, and a process
# has room for a few dozen large programs (of memory mappings) before the compiler fails.
_MOST_KEPT = 4
_MAPPINGS, _LIMIT = Path("/proc/self/maps"), Path("/proc/sys/vm/max_map_count")
_NEARLY_FULL = 0.7
# Elements written by operations of a program (loops without a known end: of one turn) from
# which optimising it pays: so many take some three seconds, and up to three times as long
# without; what is not optimised is compiled four to five seconds faster.
_MUCH = 2e9
# In what they save; a version of XLA may know one and not another.
_PLAIN = {"xla_backend_optimization_level": 0, "xla_cpu_use_fusion_emitters": False}
_kept: OrderedDict[Hashable, Callable] = OrderedDict()


def compiled(
    facts: tuple, function: Callable, args: tuple, kwargs: dict
) -> Callable[..., Any]:
    """``function(*inputs, args, kwargs)`` as a compiled program of the inputs.

    Where the model needs the values of an argument in Python, they are part of the
    program, which is then not kept. So are arrays that JAX would round (double precision
    of NumPy's, by default): what the model does to them in NumPy keeps its digits.

    Args:
        facts: what it depends on besides inputs and arguments: with ``function`` itself,
            hashable.
        function: to compile.
        args: the model's arguments.
        kwargs: likewise.
    """
    arrays, rest, with_arrays = _split(function, args, kwargs)
    program = _keep((facts, rest), with_arrays)

    def run(*inputs):
        try:
            return program(arrays, *inputs)
        except jax.errors.JaxRuntimeError:
            raise
        except Exception:  # a loop over n, rows chosen by a mask: whatever Python needs
            return jax.jit(lambda *inputs: function(*inputs, args, kwargs))(*inputs)

    return run


def text_of(function: Callable, args: tuple, kwargs: dict) -> Hashable:
    """What ``function(args, kwargs)`` computes of the arrays: its program, to compare.

    Whatever it takes from outside is in it: numbers as text, arrays by identity.
    """
    arrays, _, with_arrays = _split(function, args, kwargs)
    try:
        closed = jax.make_jaxpr(with_arrays)(arrays)
    except Exception:  # values are needed in Python: not known, so equal to nothing
        return ById(object())
    text = re.sub(r" at 0x[0-9a-f]+", "", str(closed.jaxpr))
    return text, tuple(ById(constant) for constant in closed.consts)


def _split(function: Callable, args: tuple, kwargs: dict) -> tuple:
    """Arrays among the arguments, all else (hashable), ``function`` of the arrays first."""
    leaves, structure = jax.tree.flatten((args, kwargs))
    arrays = [leaf for leaf in leaves if _is_array(leaf)]
    rest = tuple(None if _is_array(leaf) else ByValue(leaf) for leaf in leaves)

    def with_arrays(arrays, *inputs):
        given = iter(arrays)
        put = [next(given) if one is None else one.value for one in rest]
        return function(*inputs, *jax.tree.unflatten(structure, put))

    return arrays, (structure, rest), with_arrays


def make_room() -> None:
    """Drop compiled programs where the process is near its limit of memory mappings.

    XLA maps every function of a program on its own, JAX keeps the programs of every run,
    and where the system gives no more (Linux: 65,530 by default, some fifty runs) the
    compiler ends the process, draws and all.
    """
    try:
        limit = int(_LIMIT.read_text())
        used = _MAPPINGS.read_bytes().count(b"\n")
    except (OSError, ValueError):  # another system
        return
    if used < _NEARLY_FULL * limit:
        return
    _kept.clear()
    jax.clear_caches()
    warnings.warn(
        f"JAX's compiled programs were dropped (`jax.clear_caches()`): they held {used} of "
        f"the {limit} memory mappings that this process may have, and the next run would "
        "have ended it. Runs compile anew; one `MCMC` object used again compiles less.",
        UserWarning,
        stacklevel=4,
    )


def _keep(key: Hashable, function: Callable) -> Callable:
    """The program kept under this key, or a new one."""
    try:
        program = _kept.pop(key, None) or _RunsOnce(function)
        _kept[key] = program
    except TypeError:  # an argument that is not hashable
        return _RunsOnce(function)
    if len(_kept) > _MOST_KEPT:
        _kept.popitem(last=False)
    return program


class _RunsOnce:
    """``jax.jit(function)`` for a program whose compilation is most of its time."""

    def __init__(self, function: Callable):
        self._optimised = jax.jit(function)
        self._plain = jax.jit(function, compiler_options=_plain_options())

    def __call__(self, *inputs: Any) -> Any:
        if any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves(inputs)):
            return self._optimised(*inputs)  # options are for whole programs only
        jaxpr = self._optimised.trace(*inputs).jaxpr
        computes_much = _num_elements(jaxpr) > _MUCH
        return (self._optimised if computes_much else self._plain)(*inputs)


@cache
def _plain_options() -> dict[str, Any]:
    """Options of the compiler that this version of it has."""
    if jax.default_backend() != "cpu":
        return {}
    return {name: value for name, value in _PLAIN.items() if _is_known(name, value)}


def _is_known(name: str, value: Any) -> bool:
    try:
        jax.jit(lambda: 0, compiler_options={name: value}).lower().compile()
    except jax.errors.JaxRuntimeError:
        return False
    return True


def _num_elements(jaxpr: Any) -> int:
    """Elements that the operations of a program write, loops of known length counted."""
    jaxpr = getattr(jaxpr, "jaxpr", jaxpr)
    total = 0
    for equation in jaxpr.eqns:
        leaves = jax.tree.leaves(list(equation.params.values()))
        inner = [p for p in leaves if hasattr(p, "eqns") or hasattr(p, "jaxpr")]
        if inner:
            turns = equation.params.get("length", 1)
            total += turns * sum(_num_elements(each) for each in inner)
        else:
            total += sum(int(np.prod(out.aval.shape)) for out in equation.outvars)
    return total


class ByValue:
    """Equal where value and type are: 1, 1.0 and True are three programs."""

    def __init__(self, value: Any):
        self.value = value

    def __hash__(self) -> int:
        return hash((type(self.value), self.value))

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, ByValue)
            and type(self.value) is type(other.value)
            and self.value == other.value
        )


def _is_array(leaf: Any) -> bool:
    """Whether it can be traced and stay what it is."""
    if isinstance(leaf, np.ndarray):
        return leaf.dtype == jax.dtypes.canonicalize_dtype(leaf.dtype)
    return isinstance(leaf, jax.Array)
