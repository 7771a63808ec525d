r"""A score alone, checked by the noise that it finds in held-out rows.

For :math:`z_t = a_t z_0 + s_t e` Tweedie's formula says :math:`E[e \mid z_t] = -s_t
\nabla\log p_t(z_t)`. So what the right score leaves of the noise is uncorrelated with
everything that can be computed from ``z_t``, and no linear correction of it lowers the
error on other rows. That is tested with the predicted noise itself, the position, and the
prediction of the best Gaussian (H. Robbins, 1956; B. Efron, JASA 2011).
"""

from typing import Any, NamedTuple

import jax
import jax.random as jr
import numpy as np

from numpyro_rtk.density import Density
from numpyro_rtk.diagnostics.readings import Reading, as_wrapped, readings, vectorised
from numpyro_rtk.networks.wrapped import WrappedScore

__all__ = ["ScoreCheck", "check_score"]

_NUM_LEVELS, _SMALLEST, _LARGEST = 8, 0.05, 10.0  # noise, as ladders have it
_MOST_ROWS = 2000
_FEW_ROWS, _FEW_NUMBERS = (256, 1000), 64_000  # for each other reading; dim times rows
_SOME_LEVELS = slice(1, None, 2)

# What counts as a problem: squared error per coordinate, of noise of variance 1.
_LARGEST_EXCESS, _EXCESS_ERRORS = 0.02, 5.0  # of the error itself
_LEAST_EXCESS = 0.002  # of what little noise is left to find where there is much
_LEAST_GAIN = 0.003  # of another reading, mean over levels
_AS_GOOD = 0.005  # a smaller mistake is named before a larger one that explains as much
_FAR = 3.0  # of the rows from the process, in its own units


class ScoreCheck(NamedTuple):
    """What :func:`numpyro_rtk.check_prior` found of a score alone; ``print`` it.

    Arrays are by noise level, smallest first, ``(levels,)``; errors are squared, per
    coordinate, of noise of variance 1, which predicting nothing has.

    Attributes:
        noise: noise-to-signal ratios, in the units of the noise process.
        error: of the score's prediction.
        gaussian: of the best Gaussian's, fitted to other rows.
        excess: by how much a linear correction of the prediction, fitted to other rows,
            lowers its error: 0 or less, up to chance, if the score is right.
        excess_error: standard error of ``excess``.
        slope: of the noise on the prediction; 1 if the score is right.
        residual: mean of noise less prediction, the coordinate with the largest; 0 if
            the score is right.
        mistake: the likeliest one, in words; None where nothing explains what was found,
            or nothing was.
        problems: sentences that say what is wrong and what to change.
    """

    noise: np.ndarray
    error: np.ndarray
    gaussian: np.ndarray
    excess: np.ndarray
    excess_error: np.ndarray
    slope: np.ndarray
    residual: np.ndarray
    mistake: str | None
    problems: tuple[str, ...]

    def __str__(self) -> str:
        """The report."""
        head = "noise    error  Gaussian's  too much by      slope  mean residual"
        lines = [
            f"{r:5.2f}  {error:7.3f}  {rival:10.3f}  {excess:6.3f} +- {se:.3f}"
            f"  {slope:6.2f}  {mean:+13.3f}"
            for r, error, rival, excess, se, slope, mean in zip(*self[:7], strict=True)
        ]
        problems = self.problems or ("nothing found",)
        return "\n".join([head, *lines, *(f"- {problem}" for problem in problems)])

    def plot(self) -> Any:
        """A figure: the error by noise level, beside that of the best Gaussian."""
        from numpyro_rtk.diagnostics.plots import plot_score_check

        return plot_score_check(self)


class _Noised(NamedTuple):
    """Rows at one noise level, each ``(n, dim)``: position, noise, the Gaussian's guess."""

    t: float
    z: np.ndarray
    noise: np.ndarray
    gaussian: np.ndarray


def check_score(key: jax.Array, density: Density, rows: np.ndarray) -> ScoreCheck:
    """The check of a density that has a score alone.

    Args:
        key: of the noise.
        density: of ``x`` alone.
        rows: held out, ``(n, dim)``, in random order.
    """
    model_ = vectorised(as_wrapped(density))
    rows = rows[:_MOST_ROWS]
    seed = np.asarray(jr.key_data(key)).ravel().tolist()
    low, high = model_.noise_range
    ends = max(low, _SMALLEST), min(high, _LARGEST)
    noise = np.geomspace(min(ends), ends[1], _NUM_LEVELS)
    found = [
        _compare(level, _predicted(model_, level.t, level.z))
        for level in _noised(model_, rows, noise, seed)
    ]
    columns = [np.array(column) for column in zip(*found, strict=True)]
    check = ScoreCheck(noise, *columns, mistake=None, problems=())
    allowed = np.maximum(_LARGEST_EXCESS * check.error, _LEAST_EXCESS)
    is_bad = check.excess > np.maximum(allowed, _EXCESS_ERRORS * check.excess_error)
    is_bad |= ~np.isfinite(check.error)
    problems = list(_says_far(model_, rows))
    if not is_bad.any():
        return check._replace(problems=tuple(problems))
    better = _better_reading(model_, rows, noise[_SOME_LEVELS], seed)
    problems.insert(0, _says_wrong(check, is_bad))
    if better is None:
        problems.insert(1, _UNEXPLAINED)
        return check._replace(problems=tuple(problems))
    reading, theirs, ours = better
    problems.insert(
        0,
        f"Likeliest mistake: {reading.mistake}. Read so, the network's error is "
        f"{theirs:.3f} where it is {ours:.3f} now. Use {reading.remedy}.",
    )
    return check._replace(mistake=reading.mistake, problems=tuple(problems))


def _noised(
    model_: WrappedScore, rows: np.ndarray, noise: np.ndarray, seed: list[int]
) -> list[_Noised]:
    """Standardised rows with fresh noise, at each of the levels."""
    z0 = (rows - np.ravel(model_.loc)) / np.ravel(model_.scale)
    rng = np.random.default_rng(seed)
    levels = []
    for r in noise:
        t = 0.5 * np.log1p(r**2)
        e = rng.normal(size=z0.shape)
        z = np.exp(-t) * z0 + np.sqrt(-np.expm1(-2.0 * t)) * e
        levels.append(_Noised(float(t), z, e, _by_gaussian(z0, z, float(t))))
    return levels


def _by_gaussian(z0: np.ndarray, z: np.ndarray, t: float) -> np.ndarray:
    """Predicted noise of a Gaussian fitted to the other half of the rows, ``(n, dim)``."""
    out, half, dim = np.empty_like(z), len(z) // 2, z.shape[1]
    for fitted, asked in _halves(half):
        mean, variance = z0[fitted].mean(axis=0), z0[fitted].var(axis=0)
        noised = np.exp(-2.0 * t) * variance - np.expm1(-2.0 * t)
        off = z[asked] - np.exp(-t) * mean
        if half >= 5 * dim:
            covariance = np.exp(-2.0 * t) * np.atleast_2d(np.cov(z0[fitted].T))
            covariance -= np.expm1(-2.0 * t) * np.eye(dim)
            out[asked] = np.linalg.solve(covariance, off.T).T
        else:
            out[asked] = off / noised
    return np.sqrt(-np.expm1(-2.0 * t)) * out


def _halves(half: int) -> tuple[tuple[slice, slice], tuple[slice, slice]]:
    """To fit to, and to ask."""
    first, second = slice(None, half), slice(half, None)
    return (first, second), (second, first)


def _predicted(model_: WrappedScore, t: float, z: np.ndarray) -> np.ndarray:
    """The noise that a network, read so, predicts, ``(n, dim)``."""
    dtype = model_.loc.dtype
    shaped = jax.numpy.asarray(z.reshape(-1, *model_.event_shape), dtype)
    out = model_.predicted_noise(shaped, jax.numpy.asarray(t, dtype))
    return np.asarray(out, float).reshape(z.shape)


def _compare(level: _Noised, predicted: np.ndarray) -> tuple[float, ...]:
    """The columns of :class:`ScoreCheck` from ``error`` to ``residual``."""
    rival = float(np.mean(np.square(level.noise - level.gaussian)))
    if not np.all(np.isfinite(predicted)):
        return (np.nan, rival, *(np.nan,) * 4)
    error = np.mean(np.square(level.noise - predicted), axis=1)
    corrected = _corrected(level, predicted)
    gain = error - np.mean(np.square(level.noise - corrected), axis=1)
    residual = (level.noise - predicted).mean(axis=0)
    size = max(np.sum(np.square(predicted)), 1e-30)  # 0 where nothing is predicted
    slope = np.sum(level.noise * predicted) / size
    return (
        float(error.mean()),
        rival,
        float(gain.mean()),
        float(gain.std(ddof=1) / np.sqrt(len(gain))),
        float(slope),
        float(residual[np.argmax(np.abs(residual))]),
    )


def _corrected(level: _Noised, predicted: np.ndarray) -> np.ndarray:
    """Regressed, in halves, on itself, the Gaussian's guess and the position."""
    stack = np.stack([level.noise, predicted, level.gaussian, level.z], axis=-1)
    out = np.empty_like(predicted)
    for fitted, asked in _halves(len(predicted) // 2):
        mean = stack[fitted].mean(axis=0)
        centred = (stack[fitted] - mean).reshape(-1, 4)
        weights = np.linalg.lstsq(centred[:, 1:], centred[:, 0], rcond=1e-10)[0]
        out[asked] = mean[:, 0] + (stack[asked] - mean)[..., 1:] @ weights
    return out


def _better_reading(
    model_: WrappedScore, rows: np.ndarray, noise: np.ndarray, seed: list[int]
) -> tuple[Reading, float, float] | None:
    """The smallest mistake that explains the error, its error, and the one as it is."""
    rows = rows[: int(np.clip(_FEW_NUMBERS // rows.shape[1], *_FEW_ROWS))]
    ours = _errors(model_, rows, noise, seed)
    found = []
    for reading in readings(model_, rows):
        theirs = _errors(reading.model_, rows, noise, seed)
        if _is_better(theirs, ours):
            found.append((reading, _mean_gain(theirs)))
    if not found:
        return None
    best = min(gain for _, gain in found)
    reading, gain = next(pair for pair in found if pair[1] <= best + _AS_GOOD)
    baseline = np.mean([rival.mean() for _, rival in ours])
    return reading, float(baseline + gain), float(baseline + _mean_gain(ours))


Errors = list[tuple[np.ndarray, np.ndarray]]


def _errors(
    model_: WrappedScore, rows: np.ndarray, noise: np.ndarray, seed: list[int]
) -> Errors:
    """By level and row, of the network so read and of the best Gaussian, each ``(n,)``.

    The Gaussian stands beside it because another scale is another noise.
    """
    out = []
    for level in _noised(model_, rows, noise, seed):
        predicted = _predicted(model_, level.t, level.z)
        theirs = (predicted, level.gaussian)
        out.append(tuple(np.mean(np.square(level.noise - p), axis=1) for p in theirs))
    return out


def _mean_gain(errors: Errors) -> float:
    return float(np.mean([np.mean(error - rival) for error, rival in errors]))


def _is_better(theirs: Errors, ours: Errors) -> bool:
    """Clearly less error in all, less at most levels, at none clearly more; no rubbish."""
    if not all(np.all(np.isfinite(error)) for error, _ in theirs):
        return False
    if _mean_gain(theirs) > _LARGEST_EXCESS:
        return False
    if not all(np.all(np.isfinite(error)) for error, _ in ours):
        return True
    gains = [
        (error - rival) - (their_error - their_rival)
        for (error, rival), (their_error, their_rival) in zip(ours, theirs, strict=True)
    ]
    z = np.array([_in_errors(gain) for gain in gains])
    total = np.mean(gains, axis=0)
    is_clear = total.mean() > _LEAST_GAIN and _in_errors(total) > _EXCESS_ERRORS
    return bool(is_clear and np.mean(z > 2.0) > 0.5 and z.min() > -_EXCESS_ERRORS)


def _in_errors(values: np.ndarray) -> float:
    """A mean in its standard errors."""
    return float(values.mean() / (values.std(ddof=1) / np.sqrt(len(values)) + 1e-12))


_UNEXPLAINED = (
    "No other reading of the network explains it (predictions, signs, the usual schedules "
    "and scales were tried). Check that the rows are of the kind it was trained on, "
    "`schedule`, `loc` and `scale`; or train it longer."
)


def _says_wrong(check: ScoreCheck, is_bad: np.ndarray) -> str:
    """Where Tweedie's residual is not zero."""
    if not np.all(np.isfinite(check.error)):
        return "The score is not finite at some noised held-out rows."
    worst = int(np.argmax(np.where(is_bad, check.excess, -np.inf)))
    levels = ", ".join(f"{r:.2g}" for r in check.noise[is_bad])
    than = "more" if check.error[worst] > check.gaussian[worst] else "less"
    return (
        f"The score is wrong at noise {levels}: what it leaves of the noise does not have "
        f"mean zero. At {check.noise[worst]:.2g} its error is {check.error[worst]:.3f} "
        f"({than} than a Gaussian's, {check.gaussian[worst]:.3f}), and a linear correction "
        f"lowers it by {check.excess[worst]:.3f} +- {check.excess_error[worst]:.3f}."
    )


def _says_far(model_: WrappedScore, rows: np.ndarray) -> list[str]:
    """Where runs would start away from the rows."""
    z = (rows - np.ravel(model_.loc)) / np.ravel(model_.scale)
    spread, off = z.std(axis=0).max(), np.abs(z.mean(axis=0)).max()
    if spread < _FAR and off < _FAR:
        return []
    return [
        f"In the units of `loc` and `scale` the rows have standard deviations of up to "
        f"{spread:.3g} and means of up to {off:.3g}: runs that begin at noise of 20 begin "
        "elsewhere. If the network was trained on such values, take a longer ladder "
        "(`ladder=lambda n: rtk.noise.angle_ladder(n, horizon=6.0)`)."
    ]
