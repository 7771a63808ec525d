"""Checks of arguments, with one wording: what it must be, what it got."""

import numbers
import warnings
from typing import Any

import numpy as np

__all__ = [
    "COARSE",
    "check_bool",
    "check_finite_values",
    "check_fraction",
    "check_non_negative_int",
    "check_orthogonal",
    "check_positive",
    "check_positive_int",
    "check_positive_values",
    "check_resolution",
    "coarse_message",
]

# Floating point numbers in one standard deviation. The smallest noise of a fit is a
# fiftieth of that: 1,000 leave 20 for it; with 20 the rounding is as large as that noise.
_ENOUGH_NUMBERS, _FEWEST_NUMBERS = 1000.0, 20.0

# Nats to which a log density must be resolved, so that acceptances are what they should.
COARSE = 0.05


def coarse_message(rounding: float) -> str:
    """What to say of a log density that is resolved to so many nats."""
    return (
        "The model's log density has terms so large that numbers of this type resolve it "
        f"to {rounding:.2g} nats: acceptances, and so the posterior, are off by as much. "
        'Compute in double precision (`jax.config.update("jax_enable_x64", True)` before '
        "anything else), or subtract the constant part of the terms where they are "
        "computed."
    )


def _is_int(value: object) -> bool:
    return isinstance(value, numbers.Integral) and not isinstance(value, bool)


def _is_real(value: object) -> bool:
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


def check_bool(name: str, value: object) -> None:
    """Raise unless ``value`` is True or False."""
    if not isinstance(value, bool | np.bool_):
        raise TypeError(f"`{name}` must be True or False; got {value!r}.")


def check_positive_int(name: str, value: object) -> None:
    """Raise unless ``value`` is an integer of at least 1."""
    if not _is_int(value):
        raise TypeError(f"`{name}` must be an integer; got {value!r}.")
    if value < 1:  # type: ignore[operator]
        raise ValueError(f"`{name}` must be at least 1; got {value!r}.")


def check_non_negative_int(name: str, value: object) -> None:
    """Raise unless ``value`` is an integer of at least 0."""
    if not _is_int(value):
        raise TypeError(f"`{name}` must be an integer; got {value!r}.")
    if value < 0:  # type: ignore[operator]
        raise ValueError(f"`{name}` must be at least 0; got {value!r}.")


def check_positive(name: str, value: object) -> None:
    """Raise unless ``value`` is a finite real number above 0."""
    if not _is_real(value):
        raise TypeError(f"`{name}` must be a real number; got {value!r}.")
    if not (np.isfinite(value) and value > 0):  # type: ignore[operator, arg-type]
        raise ValueError(f"`{name}` must be positive and finite; got {value!r}.")


def check_fraction(name: str, value: object) -> None:
    """Raise unless ``value`` is a real number strictly between 0 and 1."""
    if not _is_real(value):
        raise TypeError(f"`{name}` must be a real number; got {value!r}.")
    if not 0 < value < 1:  # type: ignore[operator]
        raise ValueError(f"`{name}` must be between 0 and 1; got {value!r}.")


def check_finite_values(name: str, values: Any) -> None:
    """Raise unless all entries of an array are finite."""
    num_bad = int(np.sum(~np.isfinite(np.asarray(values))))
    if num_bad:
        raise ValueError(
            f"`{name}` must be finite; got {num_bad} NaN or infinite values."
        )


def check_positive_values(name: str, values: Any) -> None:
    """Raise unless all entries of an array are finite and above 0."""
    check_finite_values(name, values)
    num_bad = int(np.sum(np.asarray(values) <= 0))
    if num_bad:
        raise ValueError(
            f"`{name}` must be positive; got {num_bad} values of 0 or less."
        )


def check_orthogonal(name: str, matrix: Any) -> None:
    """Raise unless a square matrix is orthogonal, as far as one vector can tell.

    One product, not all: the matrix may have thousands of columns.
    """
    check_finite_values(name, matrix)
    matrix = np.asarray(matrix, np.float64)
    signs = np.random.default_rng(0).choice([-1.0, 1.0], len(matrix))
    error = float(np.linalg.norm(matrix.T @ (matrix @ signs) - signs))
    if error > 1e-2:
        raise ValueError(
            f"`{name}` must be orthogonal; got one that is off by {error}."
        )


def check_resolution(name: str, loc: Any, scale: Any, dtype: Any) -> None:
    """Raise, or warn, where numbers of this type are too coarse for a density.

    Args:
        name: of what has the density, for the message.
        loc: where each coordinate lies, of any shape.
        scale: its standard deviation there, of the same shape.
        dtype: of the numbers that the density is evaluated at.

    Raises:
        ValueError: where a standard deviation holds fewer than 20 numbers.
    """
    loc, scale = np.asarray(loc, float), np.asarray(scale, float)
    if loc.size == 0 or not np.all(np.isfinite(loc)):
        return
    spacing = np.spacing(np.abs(loc).astype(dtype)).astype(float)
    held = scale / spacing
    worst = np.unravel_index(np.argmin(held), held.shape)
    if held[worst] >= _ENOUGH_NUMBERS:
        return
    type_ = np.dtype(dtype).name
    double = (
        ""
        if type_ == "float64"
        else ', or compute in double precision: `jax.config.update("jax_enable_x64", '
        "True)` before anything else"
    )
    where = f" at index {tuple(map(int, worst))}" if worst else ""
    message = (
        f"`{name}` must have a scale that {type_} numbers resolve where it lies; got a "
        f"standard deviation of {scale[worst]:.3g} around {loc[worst]:.6g}{where}, which "
        f"holds {held[worst]:.3g} of them ({_ENOUGH_NUMBERS:.0f} are enough). Subtract "
        f"the offset beforehand and add it in the model{double}."
    )
    if held[worst] < _FEWEST_NUMBERS:
        raise ValueError(message)
    warnings.warn(message, UserWarning, stacklevel=4)
