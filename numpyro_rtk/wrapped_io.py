r"""The header of a wrapped network's file, and the density that it describes.

A class with ``hyperparameters()`` is built from them, by its name, as for a fitted model.
Whatever else is callable (equinox's own modules, a ``functools.partial``) is not written
down: ``load`` is given one of the same structure, whose arrays are replaced.
"""

import json
import math
from collections.abc import Callable, Mapping
from typing import Any

import equinox as eqx
import jax
import jax.random as jr
import numpy as np

from numpyro_rtk import schedules
from numpyro_rtk._file import as_leaves, from_arrays
from numpyro_rtk.networks.shapes import as_event_shape
from numpyro_rtk.networks.wrapped import WrappedScore, check_reading

__all__ = ["WRAPPED", "build_wrapped", "describe_wrapped", "name_of_network"]

WRAPPED = "WrappedScore"
_SCHEDULES: dict[str, Any] = {
    name: getattr(schedules, name) for name in schedules.__all__ if name != "Schedule"
}


def name_of_network(network: Any) -> str:
    """By which a file names it."""
    return (network if isinstance(network, type) else type(network)).__name__


def describe_wrapped(model_: WrappedScore) -> dict[str, Any]:
    """Its part of a header.

    Raises:
        TypeError: for hyperparameters that JSON does not hold, and for a network without
            arrays.
        ValueError: for a schedule of one's own.
    """
    network, schedule = model_.network, model_.schedule
    if not as_leaves(network):
        raise TypeError(
            f"`model_` must have a network whose arrays it holds; got "
            f"{name_of_network(network)}, a function without any. Wrap an equinox module, "
            "or `functools.partial(apply, params)`."
        )
    name = type(schedule).__name__
    if _SCHEDULES.get(name) is not type(schedule):
        raise ValueError(
            f"`model_` must have a schedule of `rtk.schedules`; got your own {name}."
        )
    low, high = model_.noise_range
    make = getattr(network, "hyperparameters", None)
    described = {
        "model": WRAPPED,
        "network": name_of_network(network),
        "hyperparameters": make() if callable(make) else None,
        "noise_range": [low, None if math.isinf(high) else high],
        "wrapping": {
            "event_shape": list(model_.event_shape),
            "predicts": model_.predicts,
            "batched": model_.batched,
            "schedule": [name, schedule.hyperparameters(), _sizes(schedule)],
            "constants": _constants(network),
        },
    }
    try:
        return json.loads(json.dumps(described, allow_nan=False))
    except (TypeError, ValueError) as error:
        raise TypeError(
            f"`hyperparameters()` of {described['network']} must return values that JSON "
            f"can hold: {error}."
        ) from None


def build_wrapped(
    header: Mapping[str, Any], arrays: Mapping[str, np.ndarray], network: Any
) -> WrappedScore:
    """The density of a header and arrays.

    Args:
        header: as :func:`describe_wrapped` gives it.
        arrays: as the file holds them.
        network: a class with ``hyperparameters()``, or a callable of the same structure.

    Raises:
        Exception: of any kind; a constructor may find anything in the header.
    """
    described = header["wrapping"]
    shape = as_event_shape(described["event_shape"])
    low, high = header["noise_range"]
    schedule = _schedule_template(*described["schedule"])
    check_reading(described["predicts"], schedule)
    template = WrappedScore(
        network=_network_template(header, network),
        schedule=schedule,
        loc=np.zeros(shape),  # pyright: ignore[reportArgumentType]
        scale=np.zeros(shape),  # pyright: ignore[reportArgumentType]
        event_shape=shape,
        predicts=described["predicts"],
        batched=described["batched"],
        noise_range=(low, math.inf if high is None else high),
    )
    model_ = from_arrays(_as_in(template, arrays), arrays)
    model_.check()
    if _constants(model_.network) != described["constants"]:
        raise ValueError(
            f"its network must have the numbers {described['constants']}, which are no "
            f"arrays; got one with {_constants(model_.network)}"
        )
    return model_


def _network_template(header: Mapping[str, Any], network: Any) -> Callable[..., Any]:
    hyperparameters = header["hyperparameters"]
    if not isinstance(network, type):
        return network
    if hyperparameters is None:
        raise ValueError(
            f"its network, {header['network']}, has no `hyperparameters()`, so it cannot "
            "be built from its class; pass one of the same structure, with whatever "
            f"weights: `load(path, networks=[{header['network']}(...)])`"
        )
    options = {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in hyperparameters.items()
    }
    return eqx.filter_eval_shape(lambda: network(**options, key=jr.key(0)))


def _schedule_template(name: Any, options: Any, sizes: Any) -> schedules.Schedule:
    if name not in _SCHEDULES:
        raise ValueError(f"`schedule` must be one of {list(_SCHEDULES)}")
    if name == "DDPM":
        (num,) = sizes
        return schedules.DDPM(1.0 - np.arange(1.0, num + 1.0) / (num + 1.0))
    return _SCHEDULES[name](**options)


def _sizes(schedule: schedules.Schedule) -> list[int]:
    """Of its arrays."""
    return [int(np.size(leaf)) for leaf in jax.tree.leaves(schedule)]


def _as_in(template: WrappedScore, arrays: Mapping[str, np.ndarray]) -> WrappedScore:
    """The template with the types of the file: whoever trained it chose them.

    Raises:
        ValueError: for double precision where JAX has none.
    """
    if not jax.config.jax_enable_x64 and any(  # pyright: ignore[reportAttributeAccessIssue]
        array.dtype in (np.float64, np.int64) for array in arrays.values()
    ):
        raise ValueError(
            "it holds numbers of double precision, which need "
            '`jax.config.update("jax_enable_x64", True)`'
        )

    def typed(path, leaf):
        array = arrays.get(jax.tree_util.keystr(path).removeprefix("."))
        is_array = isinstance(leaf, jax.Array | np.ndarray | jax.ShapeDtypeStruct)
        if not is_array:
            return leaf
        dtype = leaf.dtype if array is None else array.dtype
        return jax.ShapeDtypeStruct(leaf.shape, dtype)

    return jax.tree_util.tree_map_with_path(typed, template)


def _constants(network: Any) -> list[bool | int | float | str]:
    """Its numbers that are no arrays, in their order."""
    kinds = (bool, int, float, str)
    return [leaf for leaf in jax.tree.leaves(network) if isinstance(leaf, kinds)]
