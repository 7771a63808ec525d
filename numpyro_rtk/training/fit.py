"""``fit``: from samples to a learned density."""

import dataclasses
import math
import os
import time
import warnings
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np

from numpyro_rtk._checks import check_resolution
from numpyro_rtk.density import Density, loc_and_scale
from numpyro_rtk.networks.base import AbstractEnergyNetwork, AbstractScoreNetwork
from numpyro_rtk.networks.energy_mlp import EnergyMLP
from numpyro_rtk.networks.model import EnergyModel, ScoreModel
from numpyro_rtk.training.base import LARGEST_DIM, MAX_ROWS, Found, fit_base
from numpyro_rtk.training.checkpoint import (
    Progress,
    fingerprint,
    load_progress,
    save_progress,
)
from numpyro_rtk.training.data import check_key
from numpyro_rtk.training.descent import Descent, descend
from numpyro_rtk.training.devices import place_on
from numpyro_rtk.training.loop import with_weights
from numpyro_rtk.training.losses import ScoreDistillation
from numpyro_rtk.training.no_density import find_doubts, labels_of
from numpyro_rtk.training.options import Training, check_options
from numpyro_rtk.training.rows import AbstractRows, flat, open_rows

__all__ = ["FitResult", "fit"]

_LEAST_GAIN = 2.0  # in standard errors, of a network over the bare base
_REACH = 5.0  # standard deviations, within which nearly all data lie


class FitResult(NamedTuple):
    """What ``rtk.fit`` returns: ``model, history = rtk.fit(...)``.

    Attributes:
        model: the density with the best held-out loss. Where training has not lowered that
            loss by two standard errors, it is its base alone: the network is untrained
            and not evaluated (``uses_network`` is False), and a base that is richer than
            one Gaussian is fitted once more, to all rows.
        history: arrays ``step``, ``loss`` (mean over the steps since the last
            evaluation), ``validation_loss`` (of the averaged weights at the held-out rows)
            and ``wall_time`` (seconds since the call began), one entry for each
            evaluation; and the scalars ``best_step`` (0: no network) and
            ``stopped_early``.
    """

    model: EnergyModel | ScoreModel
    history: dict[str, np.ndarray]


def fit(
    key: jax.Array,
    samples: Any,
    *,
    condition: Any = None,
    network: AbstractEnergyNetwork | AbstractScoreNetwork | None = None,
    num_steps: int = 4000,
    batch_size: int = 512,
    learning_rate: float | None = None,
    validation_fraction: float = 0.1,
    checkpoint: str | os.PathLike | None = None,
    progress_bar: bool = True,
    training: Training | None = None,
    labels: list[str] | None = None,
    teacher: Density | None = None,
) -> FitResult:
    """Learn a density, at every noise level, from real numbers in one array.

    ``rtk.fit`` is this function with named and constrained samples before it; the
    arguments, what is returned and what is raised are described there. ``labels`` are
    what messages call the coordinates of a row; None: by their index. ``teacher``: a
    density whose score an energy is to have, instead of that of the samples.
    """
    start = time.perf_counter()
    key = check_key(key)
    options = check_options(
        num_steps, batch_size, learning_rate, validation_fraction, training
    )
    training = options.training
    placement = place_on(training.devices, batch_size)
    rows = open_rows(samples, training.on_host, placement.replicate, condition)
    key_network, key_split, key_validation, key_steps = jr.split(key, 4)
    network = _checked_network(network, rows, key_network)
    model = _untrained(network, rows, training, teacher)
    _check_rows(rows, model, labels)
    z_held_out = rows.hold_out(key_split, validation_fraction)
    richer = _richer_base(model, rows, z_held_out, training.num_components)
    if richer is not None:
        model = dataclasses.replace(model, base=richer.as_base())
    descent = Descent.prepare(
        model, rows, z_held_out, options, placement, key_validation, key_steps
    )
    if teacher is not None:
        loss_fn = placement.replicate(ScoreDistillation(teacher))
        descent = descent._replace(loss_fn=loss_fn)
    first = descent.first_state()
    before = descent.held_out_losses(first.average)
    progress, save = Progress.start(first, float(np.mean(before))), None
    if checkpoint is not None:
        mark = fingerprint(key, rows, model, first.weights, options)
        progress = load_progress(checkpoint, mark, progress)
        save = partial(save_progress, checkpoint, mark)
    progress = descend(
        descent, progress, options, save=save, progress_bar=progress_bar, start=start
    )
    weights, history = progress.best_weights, progress.history(training.patience)
    if _is_learned(before - descent.held_out_losses(weights)):
        return FitResult(with_weights(model, placement.gather(weights)), history)
    history["best_step"] = np.asarray(0)
    return FitResult(_base_alone(model, richer, rows, z_held_out), history)


def _is_learned(gain: np.ndarray) -> bool:
    """Whether the network is worth having: paired gains in held-out loss, ``(m,)``.

    On a base that is nearly the law itself, training lowers the loss by less than chance
    does and adds its own error to the density.
    """
    return bool(gain.mean() > _LEAST_GAIN * gain.std(ddof=1) / np.sqrt(len(gain)))


def _base_alone(
    model: EnergyModel | ScoreModel,
    richer: Found | None,
    rows: AbstractRows,
    z_held_out: Any,
) -> EnergyModel | ScoreModel:
    """The model without its network, and with a richer base fitted to all rows.

    Nothing is left that the held-out ones would have to choose.
    """
    if richer is not None:
        every = np.concatenate([rows.some(MAX_ROWS), flat(z_held_out)])
        model = dataclasses.replace(model, base=richer.refit(every).as_base())
    return dataclasses.replace(model, uses_network=False)


def _checked_network(
    network: Any, rows: AbstractRows, key: jax.Array
) -> AbstractEnergyNetwork | AbstractScoreNetwork:
    """The network, if it is made for these rows; for None the default one."""
    event_shape, condition_shape = rows.event_shape, rows.condition_shape
    if network is None:
        return EnergyMLP(event_shape, condition_shape=condition_shape, key=key)
    if not isinstance(network, AbstractEnergyNetwork | AbstractScoreNetwork):
        raise TypeError(
            "`network` must be an energy network (`EnergyMLP`), a score network "
            "(`ScoreMLP`) or None, an instance, not the class; got "
            f"{network!r:.60}. For your own, subclass "
            "numpyro_rtk.networks.AbstractEnergyNetwork."
        )
    if network.event_shape != event_shape:
        raise ValueError(
            f"`network` must be made for the event shape of `samples`, {event_shape}; "
            f"got one for {network.event_shape}."
        )
    theirs = getattr(network, "condition_shape", None)
    if theirs == condition_shape:
        return network
    if not hasattr(network, "condition_shape"):
        mlp = "EnergyMLP" if isinstance(network, AbstractEnergyNetwork) else "ScoreMLP"
        remedy = (
            f"{type(network).__name__} takes none: use `{mlp}({event_shape}, "
            f"condition_shape={condition_shape}, key=...)`"
        )
    elif condition_shape is None:
        remedy = "Build it without `condition_shape`, or pass `condition=`"
    else:
        remedy = f"Build it with `condition_shape={condition_shape}`"
    raise ValueError(
        f"`network` must be made for a condition of shape {condition_shape}, that of "
        f"`condition`; got one for {theirs}. {remedy}."
    )


def _untrained(
    network: AbstractEnergyNetwork | AbstractScoreNetwork,
    rows: AbstractRows,
    training: Training,
    teacher: Density | None,
) -> EnergyModel | ScoreModel:
    """The model before its first step: one Gaussian and a network of zeros.

    The noise of a teacher's student is the teacher's own, in another unit.
    """
    units = None if teacher is None else np.asarray(loc_and_scale(teacher)[1], float)
    loc, scale, base = rows.standardise(
        training.standardise, network.exchangeable, units
    )
    parts = {
        "base": base,
        "conditioning": rows.conditioning,
        # in double precision where that is on: `x - loc` must keep what `x` holds
        "loc": jnp.asarray(loc, float),
        "scale": jnp.asarray(scale, float),
        "noise_range": _noise_range(training, teacher, scale, units),
    }
    if isinstance(network, AbstractEnergyNetwork):
        return EnergyModel(network=network, reach=_REACH, **parts)
    return ScoreModel(network=network, **parts)


def _noise_range(
    training: Training, teacher: Any, scale: np.ndarray, units: np.ndarray | None
) -> tuple[float, float]:
    """That of the options, as far as a teacher was trained there."""
    low, high = training.noise_range
    theirs = getattr(teacher, "noise_range", None)
    if theirs is None or units is None:
        return low, high
    ratio = float(np.mean(scale / units))
    both = max(low, theirs[0] / ratio), min(high, theirs[1] / ratio)
    if both[0] >= both[1]:
        raise ValueError(
            "`noise_range` must overlap with the noise that the score was trained on, "
            f"{theirs[0] / ratio:.3g} to {theirs[1] / ratio:.3g} of the samples' spread; "
            f"got {training.noise_range}. Leave it at None, or correct `scale` of the "
            "score."
        )
    return both


def _check_rows(
    rows: AbstractRows, model: EnergyModel | ScoreModel, labels: list[str] | None
) -> None:
    """Raise where the rows have no density, warn where that is likely.

    A score alone claims no density: for it, it is a warning.
    """
    spread = np.sqrt(rows.moments.variance)
    check_resolution("samples", rows.moments.mean, spread, model.loc.dtype)
    noise = model.noise_range[0] * np.asarray(model.scale, float).reshape(-1)
    names = labels_of(rows.event_shape) if labels is None else labels
    for found, remedy, is_severe in find_doubts(rows.look(), noise, names):
        message = f"`samples` must have a density; got {found}. {remedy}."
        if is_severe and isinstance(model, EnergyModel):
            raise ValueError(message)
        warnings.warn(message, UserWarning, stacklevel=4)


def _richer_base(
    model: EnergyModel | ScoreModel,
    rows: AbstractRows,
    z_held_out: Any,
    num_components: int | None,
) -> Found | None:
    """A richer base than one Gaussian, where that is better."""
    reason = None
    if rows.condition is not None:
        reason = "where there is a `condition`"
    elif model.network.exchangeable:
        reason = "for an exchangeable network"
    elif math.prod(rows.event_shape) > LARGEST_DIM:
        reason = f"beyond {LARGEST_DIM} dimensions"
    if reason is not None:
        if num_components not in (None, 1):
            raise ValueError(
                f"`num_components` must be None or 1 {reason}; got {num_components}."
            )
        return None
    return fit_base(rows.some(MAX_ROWS), flat(z_held_out), num_components)
