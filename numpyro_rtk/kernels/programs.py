"""Compiled once: programs that take the model's arguments, kept for the next run.

A user who runs the same kernel on new data of the same shapes should not wait for the
compiler again. Arrays among the arguments are traced, all else is part of the program.
"""

from collections.abc import Callable, Hashable
from typing import Any

import jax
import numpy as np

__all__ = ["ById", "Programs"]


class ById:
    """Equal to itself alone; it keeps its object alive, so that no other gets its place."""

    def __init__(self, value: Any):
        self.value = value

    def __hash__(self) -> int:
        return id(self.value)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ById) and self.value is other.value


class Programs:
    """Of one kernel, by what they were compiled for."""

    def __init__(self) -> None:
        self._kept: dict[Hashable, Callable] = {}

    def get(
        self, name: str, facts: tuple, function: Callable, args: tuple, kwargs: dict
    ) -> Callable:
        """``function(*inputs, args, kwargs)`` as a compiled program of the inputs.

        Where the model needs the values of an argument in Python, they are part of the
        program, which is then not kept.

        Args:
            name: of what it does.
            facts: what else it depends on, hashable.
            function: to compile.
            args: the model's arguments.
            kwargs: likewise.
        """
        leaves, structure = jax.tree.flatten((args, kwargs))
        arrays = [leaf for leaf in leaves if _is_array(leaf)]
        rest = tuple(None if _is_array(leaf) else ByValue(leaf) for leaf in leaves)

        def with_arrays(arrays, *inputs):
            given = iter(arrays)
            put = [next(given) if one is None else one.value for one in rest]
            return function(*inputs, *jax.tree.unflatten(structure, put))

        key = (name, facts, structure, rest)
        try:
            program = self._kept.setdefault(key, jax.jit(with_arrays))
        except TypeError:  # an argument that is not hashable
            program = jax.jit(with_arrays)

        def run(*inputs):
            try:
                return program(arrays, *inputs)
            except (
                jax.errors.ConcretizationTypeError,
                jax.errors.TracerArrayConversionError,
            ):
                return jax.jit(lambda *inputs: function(*inputs, args, kwargs))(*inputs)

        return run


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
    return isinstance(leaf, jax.Array | np.ndarray)
