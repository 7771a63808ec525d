"""Checks of the training data, each with its remedy."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np

from numpyro_rtk.networks.condition import as_condition

__all__ = [
    "check_condition",
    "check_finite",
    "check_floating",
    "check_form",
    "check_is_array",
    "check_key",
    "check_samples",
    "check_variation",
    "split_rows",
]

_MIN_SAMPLES = 10
_LEAST_CONDITION_SPREAD = 1e-6  # of an entry's largest value
_LEAST_SPREAD = 8.0  # roundings of a coordinate's largest value


def check_key(key: object) -> jax.Array:
    """A typed key from a typed or a legacy (uint32) one.

    Raises:
        TypeError: for anything else, a batch of keys included.
    """
    message = "`key` must be one JAX random key, such as `jax.random.key(0)`; got {}."
    if not isinstance(key, jax.Array | np.ndarray):
        raise TypeError(message.format(repr(key)))
    if jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
        if key.shape != ():
            raise TypeError(message.format(f"keys of shape {key.shape}"))
        return jnp.asarray(key)
    legacy_shape = jr.key_data(jr.key(0)).shape
    if key.dtype != np.uint32 or key.shape != legacy_shape:
        raise TypeError(
            message.format(f"an array of shape {key.shape} and type {key.dtype}")
        )
    return jr.wrap_key_data(jnp.asarray(key))


def check_samples(samples: object) -> np.ndarray:
    """The samples as a float64 array ``(n, *event_shape)``, or a clear refusal.

    Raises:
        TypeError: unless they are an array of floating point numbers.
        ValueError: where a density cannot be learned from them: no rows axis, too few
            rows, values that are not finite, coordinates that never change.
    """
    array = check_form(samples).astype(np.float64)
    check_finite(array)
    check_variation(np.std(array, axis=0), np.max(np.abs(array), axis=0))
    return array


def check_form(samples: object) -> np.ndarray:
    """The samples as an array of their own type; type and shape are checked."""
    if isinstance(samples, dict):
        raise TypeError(
            "`samples` must be one array of shape (n, *event_shape); got a dict of "
            f"{sorted(map(str, samples))}. Flatten and concatenate its arrays."
        )
    check_is_array(samples)
    array = np.asarray(samples)
    check_floating(array)
    if array.ndim == 0:
        raise ValueError(
            "`samples` must have shape (n, *event_shape), one row for each sample; got "
            "a scalar."
        )
    if array.shape[0] < _MIN_SAMPLES:
        raise ValueError(
            f"`samples` must have at least {_MIN_SAMPLES} rows; got shape {array.shape}."
        )
    if array.size == 0:
        raise ValueError(
            f"`samples` must have at least one coordinate; got shape {array.shape}."
        )
    return array


def check_is_array(samples: object) -> None:
    """Raise for what yields rows one after the other, or a function that makes it."""
    if hasattr(samples, "__array__") or hasattr(samples, "__array_interface__"):
        return
    if isinstance(samples, type | str | bytes | list | tuple | Mapping):
        return  # an array, several, or something that is refused as what it is
    if callable(samples) or hasattr(samples, "__iter__"):
        raise TypeError(
            "`samples` must be an array, or a dict or DataFrame of them; got an iterator "
            f"or a function, of type {type(samples).__name__}. Rows that do not fit the "
            "memory go to a file first, an `np.memmap`, which `fit` reads in pieces:\n"
            "    rows = np.lib.format.open_memmap('rows.npy', 'w+', 'f4', (n, dim))\n"
            "    for i, chunk in enumerate(chunks): rows[i * m : (i + 1) * m] = chunk\n"
            "    fit(key, np.load('rows.npy', mmap_mode='r'))"
        )


def check_floating(array: np.ndarray, name: str = "`samples`") -> None:
    """Raise unless the array, called so, is of floating point numbers."""
    # bfloat16 and its kin are no subtype of np.floating
    if np.issubdtype(array.dtype, np.floating) or jnp.issubdtype(
        array.dtype, jnp.floating
    ):
        return
    raise TypeError(
        f"{name} must be floating point numbers: discrete values have no "
        f"density; got an array of type {array.dtype}. Use "
        "`samples.astype(float)` and add noise of the size of one step "
        "(dequantisation)."
    )


def check_condition(condition: object, num_rows: int) -> np.ndarray:
    """The conditions as a float64 array ``(n, *condition_shape)``, or a clear refusal.

    Raises:
        TypeError: unless they are an array of numbers.
        ValueError: for another number of rows than the samples', values that are not
            finite, entries that never change.
    """
    if isinstance(condition, dict) or np.asarray(condition).dtype.kind not in "biufV":
        raise TypeError(
            "`condition` must be an array of numbers, (n, *condition_shape); got "
            f"{type(condition).__name__}. Stack the arrays, and give categories one "
            "column of 0 and 1 each."
        )
    as_condition("condition", condition)
    rows = np.asarray(condition).astype(np.float64)
    if rows.ndim == 0 or rows.shape[0] != num_rows or rows.size == 0:
        raise ValueError(
            f"`condition` must have one row for each of the {num_rows} rows of "
            f"`samples`; got shape {rows.shape}."
        )
    constant = rows.std(axis=0) <= _LEAST_CONDITION_SPREAD * np.abs(rows).max(axis=0)
    if np.any(constant):
        raise ValueError(
            "`condition` must vary in every entry, else nothing can be learned of it; "
            f"got {int(constant.sum())} constant entries, the first at index "
            f"{tuple(int(i) for i in np.argwhere(constant)[0])}. Drop these entries, or "
            "subtract a large offset."
        )
    return rows


def split_rows(
    key: jax.Array, num_rows: int, fraction: float
) -> tuple[np.ndarray, np.ndarray]:
    """Indices of training and of validation rows, at least two of each."""
    order = np.asarray(jr.permutation(key, num_rows))
    held_out = min(max(round(fraction * num_rows), 2), num_rows - 2)
    return order[held_out:], order[:held_out]


def check_finite(rows: np.ndarray, name: str = "`samples`", first: int = 0) -> None:
    """Raise unless all is finite in these rows, called so; ``first``: their number."""
    bad = ~np.isfinite(rows)
    if np.any(bad):
        where = [int(i) for i in np.argwhere(bad)[0]]
        index = (first + where[0], *where[1:])
        raise ValueError(
            f"{name} must be finite; got {int(bad.sum())} NaN or infinite values in "
            f"{int(bad.reshape(len(bad), -1).any(axis=1).sum())} of {len(bad)} rows, "
            f"the first at index {index}. Remove these rows."
        )


def check_variation(
    spread: np.ndarray, size: np.ndarray, name: str = "`samples`"
) -> None:
    """Raise unless every coordinate varies.

    Args:
        spread: standard deviation of each coordinate.
        size: its largest absolute value.
        name: what the samples are called.
    """
    dtype = jnp.result_type(float)
    constant = spread <= _LEAST_SPREAD * float(jnp.finfo(dtype).eps) * size
    if np.any(constant):
        where = [tuple(int(i) for i in index) for index in np.argwhere(constant)]
        shown = ", ".join(str(index) for index in where[:8])
        more = f" and {len(where) - 8} more" if len(where) > 8 else ""
        raise ValueError(
            f"{name} must vary in every coordinate; got {len(where)} constant "
            f"(or constant up to {dtype} rounding) at index {shown}{more}. A density "
            "does not exist there: drop these coordinates, subtract a large offset, or "
            "add noise (dequantisation)."
        )
