r"""Rows that have no density, which no fit can see: values that repeat, dependent columns.

Of a law with a density no two rows share a number, up to rounding. Rounding does no harm
where the smallest noise of a fit blurs it: on a grid of step :math:`\delta` noise of
standard deviation :math:`h` leaves ripples of :math:`2 e^{-2 \pi^2 h^2 / \delta^2}` of
the density, .22 of it at :math:`\delta = 3 h` and .01 at :math:`2 h`. So a value counts
as *isolated* where it has more rows than all others within ``3 h`` of it together.
"""

from typing import NamedTuple

import numpy as np

__all__ = ["Doubt", "find_doubts", "labels_of", "stretches"]

_BLURRED = 3.0  # times the smallest noise: a grid's step that it no longer hides
_LEAST_COUNT = 4  # rows of one value; fewer are chance on a fine grid
_LARGE, _SMALL = 0.05, 0.01  # share of the rows in one isolated value: an atom, perhaps
# On a grid a normal law has .4 steps a standard deviation in its commonest value: .15
# stands for 2.7 steps. A fit draws a smooth line through finer ones (2-d, step .25 sd,
# 5,000 rows: within .01 nats of the law that was rounded).
_LARGE_ON_GRID = 0.15
_HUGE = 0.25  # share in one value that is an atom whatever lies around it
_FEW_VALUES = 20
_FEW_DISTINCT = 0.2  # of the rows: fewer distinct ones are worth a word
_SINGULAR = 1e-6  # smallest eigenvalue of a correlation
_LARGEST_THIN = 64  # dimensions in which directions below the noise are worth a word
_LARGEST_DIM = 1024  # of eigenvalues that take less time than the fit
_MOST_ROWS, _LEAST_ROWS, _MOST_NUMBERS = 20_000, 2_000, 1 << 23
_NUM_STRETCHES = 32  # of neighbours among them, since copies may stand together
_SHOWN = 4
_FREQUENT = 10.0  # times the mean count of a row: one row stands out
_COPIED = 0.5  # of the rows: with fewer distinct ones, most are copies
_NUM_LOOKED_AT = 16  # columns; one without repeats says that no row repeats
_NUM_SE = 2.0  # standard errors of a count, below which it is chance
_MOSTLY = 0.5  # of the rows in isolated values: a discrete coordinate
_TOGETHER = 0.5  # of the runs that shuffled copies would form: a chain's refusals
_OFF_GRID, _ON_GRID = 0.01, 0.9  # of a step, and the share of gaps within that
_TAKES_PART = 0.05  # of a coordinate in a direction without variance
_THIN = 0.5  # of the smallest noise: a direction that it hides

_NOISE = "uniform noise as wide as one step"
_ATOM_REMEDIES = {
    "discrete": "Drop it, give it as `condition=` of the rest, or sum it out in the model "
    "with one density for each value; if it is only rounded, add "
    f"{_NOISE} (dequantisation)",
    "grid": f"Add {_NOISE}, which puts back what the rounding took (dequantisation)",
    "shared": "Leave out these rows and give the value its own probability in the model; "
    "if it stands for what is missing or cut off, remove or model that",
}
_COPIES_REMEDY = (
    "Leave out these rows (failed runs, placeholders, a chain that stood still), or give "
    "them their own probability in the model and learn the others"
)
_REPEATS_REMEDY = (
    "Thin the chain or run it longer: held-out rows are copies of rows that were trained "
    "on, and do not see what is memorised"
)
_THIN_REMEDY = (
    "Learn a combination that varies on a scale of its own (a difference, a principal "
    "component) and compute them from it in the model, or lower `noise_range[0]`"
)
_DEPENDENT_REMEDY = (
    "Leave out one of them (`sites=` of a dict or a run) and compute it in the model, or "
    "give a `support`, as `constraints.simplex` for shares that sum to one"
)


class Doubt(NamedTuple):
    """A reason to think that rows have no density.

    Attributes:
        found: what was found, with numbers; no sentence yet.
        remedy: what to do, without its full stop.
        severe: whether there is no density, not just perhaps none.
    """

    found: str
    remedy: str
    severe: bool


class _Atom(NamedTuple):
    label: str
    value: float
    share: float
    num_values: int
    step: float | None
    severe: bool

    @property
    def kind(self) -> str:
        """Which remedy it has."""
        if self.num_values <= _FEW_VALUES:
            return "discrete"
        return "shared" if self.step is None else "grid"


def labels_of(event_shape: tuple[int, ...]) -> list[str]:
    """What the coordinates of an unnamed event are called."""
    if not event_shape:
        return ["the value"]
    return [f"coordinate {tuple(map(int, i))}" for i in np.ndindex(*event_shape)]


def stretches(num_rows: int, dim: int) -> np.ndarray:
    """Indices of the rows to look at: all, or stretches of neighbours from all over."""
    num = int(np.clip(_MOST_NUMBERS // dim, _LEAST_ROWS, _MOST_ROWS))
    if num_rows <= num:
        return np.arange(num_rows)
    length = num // _NUM_STRETCHES
    first = np.linspace(0, num_rows - length, _NUM_STRETCHES).astype(int)
    return np.unique(first[:, None] + np.arange(length))


def find_doubts(rows: np.ndarray, noise: np.ndarray, labels: list[str]) -> list[Doubt]:
    """Reasons to think that these rows have no density, severe ones first.

    Args:
        rows: ``(n, dim)``, float64, in the order in which they came.
        noise: standard deviation of the smallest noise in each coordinate, ``(dim,)``.
        labels: what the coordinates are called.
    """
    doubts, are_copies = _copied_rows(rows)
    for look in (_atoms, _dependent):  # each may only repeat what is severe before it
        if not any(doubt.severe for doubt in doubts) and not (
            are_copies and look is _atoms
        ):
            doubts += look(rows, noise, labels)
    return sorted(doubts, key=lambda doubt: not doubt.severe)


def _copied_rows(rows: np.ndarray) -> tuple[list[Doubt], bool]:
    """Of whole rows that are there many times; and whether all repeats are of that kind."""
    num, dim = rows.shape
    if any(len(np.unique(column)) == num for column in rows.T[:_NUM_LOOKED_AT]):
        return [], False
    distinct, counts = np.unique(rows, axis=0, return_counts=True)
    most = int(counts.argmax())
    is_frequent = counts[most] > max(_LARGE * num, _FREQUENT * num / len(distinct))
    if dim > 1 and is_frequent:  # a value of one number is judged as such
        shown = np.array2string(distinct[most][:_SHOWN], precision=4)
        shown = shown.replace("]", " ...]") if dim > _SHOWN else shown
        found = f"the row {shown} {counts[most]} times among {num}"
        return [Doubt(found, _COPIES_REMEDY, severe=True)], True
    are_copies = len(distinct) < _COPIED * num and (
        _step_of(distinct[:, 0]) is None
        if dim == 1
        else all(len(np.unique(column)) == len(distinct) for column in rows.T)
    )
    few = len(distinct) <= _FEW_VALUES
    if not are_copies or (len(distinct) > _FEW_DISTINCT * num and not few):
        return [], are_copies and dim > 1
    found = f"only {len(distinct)} distinct rows among {num}"
    severe = few and dim > 1
    return [Doubt(found, _REPEATS_REMEDY, severe)], dim > 1


def _atoms(rows: np.ndarray, noise: np.ndarray, labels: list[str]) -> list[Doubt]:
    """Coordinates with values that hold a share of the rows each."""
    found = [
        atom
        for column, h, label in zip(rows.T, noise, labels, strict=True)
        if (atom := _atom(column, h, label)) is not None
    ]
    doubts = []
    for severe in (True, False):
        for kind, remedy in _ATOM_REMEDIES.items():
            chosen = [a for a in found if (a.severe, a.kind) == (severe, kind)]
            if chosen:
                texts = [_describe(atom) for atom in chosen[:_SHOWN]]
                more = len(chosen) - _SHOWN
                texts += [f"{more} more like these"] if more > 0 else []
                doubts.append(Doubt("; ".join(texts), remedy, severe))
    return doubts


def _atom(column: np.ndarray, noise: float, label: str) -> _Atom | None:
    """The commonest value of a coordinate, if it is one that blurring leaves alone."""
    num = len(column)
    values, counts = np.unique(column, return_counts=True)
    if counts.max() < _LEAST_COUNT:
        return None
    copies = _without_refusals(column, values, counts)
    first = np.searchsorted(values, values - _BLURRED * noise, side="left")
    last = np.searchsorted(values, values + _BLURRED * noise, side="right")
    below = np.concatenate([[0], np.cumsum(copies)])
    # by two standard errors, for chance alone may pile up rows on a fine grid
    around = below[last] - below[first]
    isolated = 2 * copies > around + _NUM_SE * np.sqrt(around)
    sure = (copies - _NUM_SE * np.sqrt(copies)) / num
    sure = np.where(isolated | (sure > _HUGE), sure, 0.0)
    is_discrete = copies[isolated].sum() > _MOSTLY * num
    largest = int(sure.argmax())
    if sure[largest] <= _SMALL and not is_discrete:
        return None
    step = _step_of(values) if is_discrete else None
    most = _LARGE if step is None else _LARGE_ON_GRID
    severe = sure[largest] > most or (is_discrete and len(values) <= _FEW_VALUES)
    value, share = float(values[largest]) + 0.0, counts[largest] / num
    return _Atom(label, value, share, len(values), step, bool(severe))


def _without_refusals(
    column: np.ndarray, values: np.ndarray, counts: np.ndarray
) -> np.ndarray:
    """How often each value came anew, where its copies stand together as a chain's do.

    Among shuffled rows ``c`` of ``n`` copies form about ``c (1 - c / n)`` runs; those of a
    refused proposal form one. A value of many rows is never taken for that: rows may be
    sorted.
    """
    num = len(column)
    starts = column[np.r_[True, np.diff(column) != 0]]
    runs = np.bincount(np.searchsorted(values, starts), minlength=len(values))
    together = runs < _TOGETHER * counts * (1.0 - counts / num)
    return np.where(together & (counts <= _LARGE * num), runs, counts)


def _step_of(values: np.ndarray) -> float | None:
    """Of a grid that the values lie on; None where there is none."""
    gaps = np.diff(values)
    step = float(np.median(gaps)) if len(gaps) else 0.0
    if step <= 0:
        return None
    off = np.abs(gaps / step - np.round(gaps / step))
    return step if np.mean(off < _OFF_GRID) > _ON_GRID else None


def _describe(atom: _Atom) -> str:
    commonest = f"{atom.value:.6g} in {100 * atom.share:.0f} % of the rows"
    if atom.kind == "discrete":
        return f"{atom.label} takes only {atom.num_values} values, {commonest}"
    if atom.kind == "grid":
        return (
            f"{atom.label} lies on a grid of {atom.num_values} values, {atom.step:.4g} "
            f"apart, {commonest}"
        )
    return f"{atom.label} is {commonest}"


def _dependent(rows: np.ndarray, noise: np.ndarray, labels: list[str]) -> list[Doubt]:
    """Coordinates that are linear functions of each other, or nearly."""
    if not _has_correlations(rows):
        return []
    index = _null_coordinates(rows, _SINGULAR)
    if index.size:
        text = "coordinates that are linear functions of each other, "
        return [Doubt(text + _listed(labels, index), _DEPENDENT_REMEDY, severe=True)]
    thin = _THIN * float(np.median(noise / rows.std(axis=0)))
    if rows.shape[1] > _LARGEST_THIN:
        return []  # the finest structure of images is always below the noise
    index = _null_coordinates(rows, thin**2)
    if index.size:
        text = (
            "coordinates that are linear functions of each other to within "
            f"{100 * thin:.2g} % of their spread, half of the smallest noise, "
        )
        return [Doubt(text + _listed(labels, index), _THIN_REMEDY, severe=False)]
    return []


def _listed(labels: list[str], index: np.ndarray) -> str:
    shown = ", ".join(labels[i] for i in index[: 2 * _SHOWN])
    more = f" and {index.size - 2 * _SHOWN} more" if index.size > 2 * _SHOWN else ""
    return shown + more


def _has_correlations(rows: np.ndarray) -> bool:
    num, dim = rows.shape
    return 1 < dim <= _LARGEST_DIM and num > 2 * dim and bool(np.all(rows.std(0) > 0))


def _null_coordinates(rows: np.ndarray, least: float) -> np.ndarray:
    """Indices of coordinates in directions in which correlations vary by less than this."""
    index = _null_of(rows, least)
    if index.size == 0:
        return index
    # a few rows far out may look like a line; a linear function is one on any rows
    distance = np.max(np.abs(rows - np.median(rows, axis=0)) / rows.std(axis=0), axis=1)
    central = rows[distance <= np.median(distance)]
    return _null_of(central, least) if _has_correlations(central) else index


def _null_of(rows: np.ndarray, least: float) -> np.ndarray:
    z = (rows - rows.mean(axis=0)) / rows.std(axis=0)
    variances, axes = np.linalg.eigh(z.T @ z / len(z))
    null = axes[:, variances < least]
    return np.flatnonzero(np.sqrt(np.sum(null**2, axis=1)) > _TAKES_PART)
