"""Bounds that samples seem to have though no support says so.

A density learned of positive numbers as if they were real gives some of its mass to
negative ones, and a posterior may stand there. Draws of a normal variable with the mean
and the standard deviation of the samples would have fallen below 0 so and so often: where
several are missing, there is a bound.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from scipy.special import ndtr

__all__ = ["Bound", "seeming_bounds", "suggested"]

_MISSING = 5.0  # draws beyond a bound that a normal variable would have had
_NEAR = float(ndtr(-5.0))  # its share beyond a bound that is 5 standard deviations away
_SUM_ERROR = 1e-4
_MOST_NUMBERS = 1 << 23  # to look at, and up to 20,000 rows
_FEW_VALUES = 20
_SHOWN = 4


class Bound(NamedTuple):
    """A support that a site's draws keep to, and what says that it is one.

    Attributes:
        support: name of the constraint.
        evidence: in words.
        whole: whether all coordinates of the site keep to it.
    """

    support: str
    evidence: str
    whole: bool


def seeming_bounds(
    values: Mapping[Any, Any], known: Mapping[Any, Any], is_wary: bool = False
) -> dict:
    """:class:`Bound` of each of the sites that has one and no support is known of.

    Args:
        values: draws by name.
        known: supports by name.
        is_wary: whether a bound needs no draws that are missing, only to be near.
    """
    found = {}
    for name, value in values.items():
        bound = None if name in known else _bound(value, is_wary)
        if bound is not None:
            found[name] = bound
    return found


def suggested(bounds: Mapping[str, Bound]) -> str:
    """What gives named sites these supports, as code."""
    pairs = [
        f"{name!r}: constraints.{b.support}" for name, b in bounds.items() if b.whole
    ]
    apart = [name for name, bound in bounds.items() if not bound.whole]
    texts = [f"`support={{{', '.join(pairs)}}}`"] if pairs else []
    if apart:
        texts.append(f"the coordinates of {apart} as sites of their own")
    return " and ".join(texts)


def _bound(value: Any, is_wary: bool) -> Bound | None:
    array = np.asarray(value)
    if array.ndim == 0 or array.dtype.kind != "f" or array.size == 0:
        return None
    most = int(np.clip(_MOST_NUMBERS * len(array) // array.size, 2_000, 20_000))
    rows = array[:: max(len(array) // most, 1)].astype(float)
    num = len(rows)
    if not np.all(np.isfinite(rows)) or not np.any(rows.std(axis=0) > 0):
        return None
    sums = rows.sum(axis=-1) if rows.ndim > 1 and rows.shape[-1] > 1 else None
    if sums is not None and rows.min() >= 0 and np.abs(sums - 1).max() < _SUM_ERROR:
        evidence = f"not negative and sums to one in all {num} draws"
        return Bound("simplex", evidence, whole=True)
    flat = rows.reshape(num, -1)
    least = num * _NEAR if is_wary else _MISSING
    below, above = (num * share for share in _normal_shares(flat))
    positive = np.all(flat > 0, axis=0)
    most = np.maximum(below, above).max()
    is_unit = flat.max() < 1 and above.max() >= num * _NEAR
    if np.all(positive) and is_unit and most >= least:
        evidence = f"between 0 and 1 in all {num} draws, and a normal one"
        return Bound("unit_interval", f"{evidence} {_times(most)}", whole=True)
    evident = positive & (below >= least)
    for i in np.flatnonzero(evident):  # what is discrete is refused for that
        evident[i] = len(np.unique(flat[:, i])) > _FEW_VALUES
    if not np.any(evident):
        return None
    most = _times(below[evident].max())
    evidence = f"never negative in {num} draws, and a normal one {most}"
    if np.all(positive):
        return Bound("positive", evidence, whole=True)
    where = np.argwhere(evident.reshape(rows.shape[1:]))
    shown = ", ".join(str(tuple(map(int, index))) for index in where[:_SHOWN])
    more = f" and {len(where) - _SHOWN} more" if len(where) > _SHOWN else ""
    return Bound("positive", f"at index {shown}{more} {evidence}", whole=False)


def _normal_shares(flat: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of a normal variable below 0 and above 1; what lies far out is drawn in first."""
    inner = np.clip(flat, *np.quantile(flat, [0.01, 0.99], axis=0))
    mean, spread = inner.mean(axis=0), np.maximum(inner.std(axis=0), 1e-300)
    return ndtr(-mean / spread), ndtr((mean - 1.0) / spread)


def _times(expected: float) -> str:
    return f"would have been otherwise {expected:.2g} times"
