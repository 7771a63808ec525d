"""Bounds that samples seem to have though no support says so.

A density learned of positive numbers as if they were real gives some of its mass to
negative ones, and a posterior may stand there. Draws of a normal variable with the mean
and the standard deviation of the samples would have fallen below 0 so and so often: where
several are missing, there is a bound.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from scipy.stats import norm

__all__ = ["Bound", "seeming_bounds", "suggested"]

_MISSING = 5.0  # draws beyond a bound that a normal variable would have had
_SUM_ERROR = 1e-4
_MOST_ROWS = 20_000


class Bound(NamedTuple):
    """A support that a site's draws keep to, and what says that it is one.

    Attributes:
        support: name of the constraint.
        evidence: in words.
    """

    support: str
    evidence: str


def seeming_bounds(values: Mapping[Any, Any], known: Mapping[Any, Any]) -> dict:
    """:class:`Bound` of each of the sites that has one and no support is known of."""
    found = {}
    for name, value in values.items():
        bound = None if name in known else _bound(value)
        if bound is not None:
            found[name] = bound
    return found


def suggested(bounds: Mapping[str, Bound]) -> str:
    """The option that gives named sites these supports, as code."""
    pairs = [f"{name!r}: constraints.{b.support}" for name, b in bounds.items()]
    return f"`support={{{', '.join(pairs)}}}`"


def _bound(value: Any) -> Bound | None:
    array = np.asarray(value)
    if array.ndim == 0 or array.dtype.kind != "f" or array.size == 0:
        return None
    rows = array[:: max(len(array) // _MOST_ROWS, 1)].astype(float)
    num = len(rows)
    if not np.all(np.isfinite(rows)) or not np.any(rows.std(axis=0) > 0):
        return None
    sums = rows.sum(axis=-1) if rows.ndim > 1 and rows.shape[-1] > 1 else None
    if sums is not None and rows.min() >= 0 and np.abs(sums - 1).max() < _SUM_ERROR:
        return Bound("simplex", f"not negative, and sums to one in all {num} draws")
    rows = rows.reshape(num, -1)
    positive = np.all(rows >= 0, axis=0)
    spread = np.maximum(rows.std(axis=0), 1e-300)
    below = num * norm.sf(rows.mean(axis=0) / spread)
    above = num * norm.sf((1.0 - rows.mean(axis=0)) / spread)
    missing = lambda expected: f"a normal one would have been {expected:.0f} times"
    if np.all(positive & (rows.max(axis=0) <= 1)) and above.max() >= _MISSING:
        most = f"between 0 and 1 in all {num} draws, and beyond "
        return Bound("unit_interval", most + missing(np.maximum(below, above).max()))
    evident = positive & (below >= _MISSING)
    # a site has one support: one coordinate below 0 and it is another than this
    if np.any(evident) and np.all(positive):
        most = f"never negative in {num} draws, and "
        return Bound("positive", most + missing(below[evident].max()))
    return None
