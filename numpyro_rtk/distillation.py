r"""``distill``: from a score to an energy.

The training is that of ``fit``, with another loss
(:class:`numpyro_rtk.training.losses.ScoreDistillation`): both slopes of the energy, in the
point and in the noise level, are matched to what they are of a density with the teacher's
score. Rows say only where.

The second slope, which carries the normalising constant and with it the weights of modes,
could be matched to the noise of the rows instead (:math:`d - \lVert e \rVert^2`, as in
``fit``). Measured after 1,000 steps from one Gaussian (``python -m
benchmarks.densities.distilled --bases one --num-steps 1000``), standard deviation of the
log density's error in nats, of an exact score: of three modes in 2 dimensions .057 by the
teacher's divergence, .114 by the noise, .119 by ``fit`` on the same draws; of six modes in
10 dimensions .23, .37, .48, and the weights' total variation .010, .061, .031. Of a small
network trained on two moons the three are at a total variation of .199, .212 and .244 from
the law of the moons, the network's own draws at .282. So it is the divergence.
"""

import dataclasses
import math
import warnings
from typing import Any

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np

from numpyro_rtk._checks import check_positive_int
from numpyro_rtk.density import (
    Density,
    check_density,
    check_resolved,
    has_energy,
    loc_and_scale,
)
from numpyro_rtk.draw import draw, is_fixed
from numpyro_rtk.networks.base import AbstractEnergyNetwork
from numpyro_rtk.networks.model import EnergyModel
from numpyro_rtk.training.data import check_key, check_samples, split_rows
from numpyro_rtk.training.fit import fit as fit_rows
from numpyro_rtk.training.options import Training
from numpyro_rtk.training.score_error import NUM_POINTS, ScoreError, score_error

__all__ = ["Distilled", "distill"]

_NUM_SAMPLES = 16_000
_BLOCK = 2_000  # draws at a time
_FEWEST = 20
_HELD_OUT = 0.05  # of the rows, for the report; no more than it has use for
_NUM_CHECKED = 16  # rows at which the teacher is called before all else
_NUM_COMPARED = 500  # own draws, where rows were given


class Distilled(tuple[EnergyModel, dict[str, np.ndarray]]):
    """What :func:`distill` returns: ``model, history = rtk.distill(...)``.

    ``print`` shows ``error``.

    Attributes:
        error: what it cost in score error, a :class:`ScoreError`.
    """

    error: ScoreError

    def __new__(
        cls, model: EnergyModel, history: dict[str, np.ndarray], error: ScoreError
    ) -> "Distilled":
        """The pair, and the error beside it."""
        pair = super().__new__(cls, (model, history))
        pair.error = error
        return pair

    def __getnewargs__(self):
        return (*self, self.error)

    @property
    def model(self) -> EnergyModel:
        """The energy, as of :class:`~numpyro_rtk.training.fit.FitResult`."""
        return self[0]

    @property
    def history(self) -> dict[str, np.ndarray]:
        """Of the training."""
        return self[1]

    def __str__(self) -> str:
        """The report."""
        return str(self.error)

    __repr__ = __str__


def distill(
    key: jax.Array,
    score_model: Density,
    samples: Any = None,
    *,
    num_samples: int = _NUM_SAMPLES,
    network: AbstractEnergyNetwork | None = None,
    num_steps: int = 4000,
    batch_size: int = 512,
    learning_rate: float | None = None,
    validation_fraction: float = 0.1,
    progress_bar: bool = True,
    training: Training | None = None,
) -> Distilled:
    """Learn an energy whose score is that of a given one, at every noise level.

    A network with a score alone becomes a density with ``log_prob``, evidence and
    exchanges.

    >>> model_, history = rtk.distill(key, score)            # doctest: +SKIP
    >>> print(rtk.distill(key, score))                       # doctest: +SKIP

    The energy follows the noise process of ``score_model``, and is that of a density with
    its score. Where the network is no exact score of anything, that density, the law of its
    draws and that of its training data are three different ones: ``rtk.check_prior``
    compares the first with the data, as of any energy. To learn the law of the draws
    instead, ``rtk.fit`` them.

    Args:
        key: random key, typed or legacy; the result is a function of it.
        score_model: a density with a score alone: ``rtk.ScoreModel.from_network(...)``, a
            :class:`ScoreModel`, any object with ``event_shape`` and ``score(x, t)``, and
            ``loc`` and ``scale`` if these are not 0 and 1. Of p(x | c) one ``given(c)``.
        samples: where the score is to be matched, ``(n, *event_shape)`` on the user's
            scale: its training data, or rows like them. None: the network's own draws.
            They must reach every mode: where the network draws what they do not reach,
            and the energy is wrong there, a warning says so. The weights of the modes are
            those of the score, not of the rows. Of a score of named sites they are its
            vectors of unconstrained values.
        num_samples: of its own draws, where no ``samples`` are given.
        network: an energy network; None: an :class:`EnergyMLP` of its default size;
            :class:`EnergyUNet` is for images.
        num_steps: gradient steps, at most; each has the teacher evaluated and
            differentiated once for each noisy point.
        batch_size: noisy points a step.
        learning_rate: as of :func:`numpyro_rtk.fit`, like all that follows.
        validation_fraction: of the rows, held out to choose the weights.
        progress_bar: shown unless the environment variable CI is set.
        training: its ``standardise`` must be None; its ``noise_range`` is narrowed to the
            noise that ``score_model`` was trained on, if it says (``noise_range``).

    Returns:
        A :class:`Distilled`, that unpacks as ``model, history``, as what ``fit`` returns,
        and has ``error``, a :class:`ScoreError`: what it cost in score error by noise
        level, at rows held out from all of the training. Where it is large, or not finite,
        a ``UserWarning`` says how much and what to do.

    Raises:
        TypeError: for a ``score_model`` that is no density or has an energy already, for a
            score network, and other arguments of the wrong kind.
        ValueError: for a density p(x | c) whose condition is open, a score of another shape
            or that is not finite, samples of another shape, that are not finite or have
            no density, draws that are not finite, and arguments out of range.
        FloatingPointError: as of ``fit``.
    """
    key = check_key(key)
    _check_teacher(score_model)
    training = _checked_training(training, network)
    key_draw, key_split, key_fit, key_report = jr.split(key, 4)
    check_positive_int("num_samples", num_samples)
    given = None if samples is None else _checked_samples(samples, score_model)
    _check_score(score_model, given)
    rows = _drawn(key_draw, score_model, num_samples) if given is None else given
    if len(rows) < _FEWEST:
        raise ValueError(
            f"`samples`, or `num_samples`, must be at least {_FEWEST} rows; got "
            f"{len(rows)}. Some thousand are needed."
        )
    share = min(_HELD_OUT, NUM_POINTS / len(rows))
    teacher = _to_compile(score_model)
    train, held_out = split_rows(key_split, len(rows), share)
    model, history = fit_rows(
        key_fit,
        rows[train],
        network=network,
        num_steps=num_steps,
        batch_size=batch_size,
        learning_rate=learning_rate,
        validation_fraction=validation_fraction,
        progress_bar=progress_bar,
        training=training,
        teacher=teacher,
    )
    assert isinstance(model, EnergyModel)
    error = score_error(key_report, model, teacher, rows[held_out])
    if given is not None:
        drawn = _own_draws(key_draw, score_model, _NUM_COMPARED)
        beyond = _beyond(key_report, model, teacher, drawn)
        error = error._replace(problems=(*error.problems, *beyond))
    if error.problems:
        warnings.warn(" ".join(error.problems), UserWarning, stacklevel=2)
    sites = getattr(score_model, "sites", None)
    if sites is not None:
        model = dataclasses.replace(model, sites=sites)
    return Distilled(model, history, error)


def _check_teacher(score_model: Any) -> None:
    """Raise unless it is a density of ``x`` alone that has a score and no energy."""
    check_density("score_model", score_model)
    if has_energy(score_model):
        raise TypeError(
            "`score_model` must be a density with a score alone; got a "
            f"{type(score_model).__name__}, which has `log_density`: there is nothing to "
            "distill. Use it as it is."
        )
    check_resolved("score_model", score_model)


def _checked_training(training: Any, network: Any) -> Training | None:
    """The options, where none is at odds with the teacher."""
    if network is not None and not isinstance(network, AbstractEnergyNetwork):
        raise TypeError(
            "`network` must be an energy network (`EnergyMLP`, `EnergyUNet`), an instance, "
            f"or None; got {network!r:.60}. A score network gives no energy."
        )
    if isinstance(training, Training) and training.standardise is not None:
        raise ValueError(
            "`training` must leave `standardise` at None: the noise is the one that "
            f"`score_model` was trained on; got {training.standardise!r}."
        )
    return training


def _drawn(key: jax.Array, teacher: Density, num_samples: int) -> np.ndarray:
    """The network's own draws, which must be numbers."""
    rows = _own_draws(key, teacher, num_samples)
    bad = ~np.isfinite(rows.reshape(len(rows), -1)).all(axis=1)
    if bad.any():
        raise ValueError(
            "`samples` must be given where `score_model` cannot be drawn from; got "
            f"{int(bad.sum())} of {len(rows)} draws that are not finite. Pass rows of "
            "its training data, and look at `rtk.check_prior(score_model, held_out)`."
        )
    return rows.astype(np.float64)


def _checked_samples(samples: Any, teacher: Density) -> np.ndarray:
    """Rows of the user's, ``(n, *event_shape)``."""
    shape = tuple(teacher.event_shape)
    if isinstance(samples, dict):
        raise TypeError(
            "`samples` must be one array, (n, *event_shape), in the coordinates of "
            f"`score_model`; got a dict of {sorted(map(str, samples))}. Leave it out for "
            "the network's own draws."
        )
    rows = check_samples(samples)
    if rows.shape[1:] != shape:
        raise ValueError(
            f"`samples` must have shape (n, *event_shape) with the event shape of "
            f"`score_model`, {shape}; got {rows.shape}. Reshape them: "
            f"`samples.reshape(-1, *{shape})`."
        )
    return rows


def _own_draws(key: jax.Array, teacher: Density, num: int) -> np.ndarray:
    """Some thousand at a time: a draw takes a particle's memory down the whole ladder."""
    size = min(_BLOCK, num)
    keys = jr.split(key, math.ceil(num / size))
    return np.concatenate([np.asarray(draw(k, teacher, (size,))) for k in keys])[:num]


def _check_score(teacher: Density, rows: np.ndarray | None) -> None:
    """Call the teacher, without noise and with much: shape, finite numbers."""
    loc, scale = loc_and_scale(teacher)
    if rows is None:
        rows = np.random.default_rng(0).normal(size=(_NUM_CHECKED, *loc.shape))
        rows = np.asarray(loc) + np.asarray(scale) * rows
    x = jnp.asarray(rows[:_NUM_CHECKED], loc.dtype)
    remedy = (
        "`score(x, t)` takes one x of `event_shape` and an OU time, in JAX; a network is "
        "made such a density by `rtk.ScoreModel.from_network`"
    )
    for t in (0.0, 0.5, 3.0):
        z = (x - loc) / scale
        noised = loc + scale * (jnp.exp(-t) * z + math.sqrt(-math.expm1(-2.0 * t)))
        try:
            found = jax.vmap(teacher.score, in_axes=(0, None))(noised, jnp.asarray(t))
        except Exception as error:  # whatever a function of the user's raises
            raise ValueError(
                f"`score_model` must have a score at x of shape {x.shape[1:]} and OU time "
                f"{t}; it raised {type(error).__name__}: {error!s:.300}. {remedy}."
            ) from error
        if jnp.shape(found) != x.shape:
            raise ValueError(
                "`score_model` must have a score of the shape of x, "
                f"{x.shape[1:]}; got {jnp.shape(found)[1:]}. {remedy}."
            )
        if not bool(jnp.all(jnp.isfinite(found))):
            raise ValueError(
                "`score_model` must have a finite score; got NaN or infinite numbers at "
                f"OU time {t} (noise of {math.sqrt(math.expm1(2.0 * t)):.3g}), where "
                "samples are. Look at `rtk.check_prior(score_model, held_out)`; of a "
                "wrapped network, leave that noise out by `noise_range`."
            )


class _Afresh:
    """An object that can change in place: compiled for once in each call."""

    def __init__(self, density: Any):
        self.score = density.score
        self.event_shape = tuple(density.event_shape)
        self.loc, self.scale = loc_and_scale(density)
        self.noise_range = getattr(density, "noise_range", None)


def _to_compile(score_model: Density) -> Density:
    """What compiled programs may know again, and are right to."""
    leaves = jax.tree.leaves(score_model)
    return score_model if all(map(is_fixed, leaves)) else _Afresh(score_model)


def _beyond(
    key: jax.Array, model: EnergyModel, teacher: Density, drawn: np.ndarray
) -> tuple[str, ...]:
    """What is wrong where the teacher draws and the given rows are not."""
    if not np.all(np.isfinite(drawn)):
        return (
            "`score_model` cannot be drawn from: some draws are not finite, so that it "
            "is not known whether `samples` reach all of its modes. Look at "
            "`rtk.check_prior(score_model, held_out)`.",
        )
    error = score_error(key, model, teacher, drawn)
    if not error.problems:
        return ()
    return (
        "`samples` do not reach all that `score_model` draws: at its own draws there are "
        f"{error.divergence:.2g} nats of divergence and {error.total_drift:.2g} of drift. "
        "Add rows from there, or leave `samples` out.",
    )
