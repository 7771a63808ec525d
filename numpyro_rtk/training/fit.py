"""``fit``: from samples to a learned density."""

import dataclasses
import math
import os
import time
import warnings
import zlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from tqdm import tqdm

from numpyro_rtk._checks import (
    check_fraction,
    check_positive,
    check_positive_int,
    check_resolution,
)
from numpyro_rtk.networks.base import AbstractEnergyNetwork, AbstractScoreNetwork
from numpyro_rtk.networks.energy_mlp import EnergyMLP
from numpyro_rtk.networks.model import EnergyModel, ScoreModel
from numpyro_rtk.training.base import LARGEST_DIM, MAX_ROWS, Found, fit_base
from numpyro_rtk.training.checkpoint import Progress, load_progress, save_progress
from numpyro_rtk.training.data import check_key
from numpyro_rtk.training.devices import Placement, check_devices
from numpyro_rtk.training.loop import (
    LossFn,
    Minibatches,
    Settings,
    TrainState,
    draw_noise_levels,
    init,
    run_steps,
    validate,
    with_weights,
)
from numpyro_rtk.training.losses import denoising_score_matching, dual_score_matching
from numpyro_rtk.training.no_density import find_doubts, labels_of
from numpyro_rtk.training.rows import AbstractRows, flat, open_rows

__all__ = ["NOISE_RANGE", "fit"]

NOISE_RANGE = (0.02, 20.0)
_LEAST_GAIN = 2.0  # in standard errors, of a network over the bare base
_NUM_VALIDATION_POINTS = 4096
_STEPS_PER_CALL = 250
_REACH = 5.0  # standard deviations, within which nearly all data lie


def fit(
    key: jax.Array,
    samples: Any,
    *,
    condition: Any = None,
    network: AbstractEnergyNetwork | AbstractScoreNetwork | None = None,
    num_steps: int = 4000,
    batch_size: int = 512,
    learning_rate: float = 5e-3,
    validation_fraction: float = 0.1,
    patience: int | None = 8,
    ema_decay: float = 0.998,
    standardise: str | None = None,
    noise_range: tuple[float, float] = NOISE_RANGE,
    num_components: int | None = None,
    checkpoint: str | os.PathLike | None = None,
    on_host: bool | None = None,
    devices: Any = None,
    progress_bar: bool = True,
    labels: list[str] | None = None,
) -> tuple[Any, dict[str, np.ndarray]]:
    """Learn a density, at every noise level, from real numbers in one array or stream.

    ``rtk.fit`` is this function with named and constrained samples before it; the
    arguments, what is returned and what is raised are described there. ``labels`` are
    what messages call the coordinates of a row; None: by their index.
    """
    start = time.perf_counter()
    key = check_key(key)
    _check_options(
        num_steps=num_steps,
        batch_size=batch_size,
        learning_rate=learning_rate,
        validation_fraction=validation_fraction,
        patience=patience,
        ema_decay=ema_decay,
        standardise=standardise,
        noise_range=noise_range,
    )
    if num_components is not None:
        check_positive_int("num_components", num_components)
    placement = check_devices(devices, batch_size)
    rows = open_rows(samples, on_host, placement.replicate, condition)
    key_network, key_split, key_validation, key_steps = jr.split(key, 4)
    if network is None:
        network = EnergyMLP(
            rows.event_shape, condition_shape=rows.condition_shape, key=key_network
        )
    _check_network(network, rows.event_shape, rows.condition_shape)

    model = _build_model(network, rows, standardise, noise_range)
    _check_rows(rows, model, labels)
    loss_fn = (
        dual_score_matching
        if isinstance(model, EnergyModel)
        else denoising_score_matching
    )
    z_held_out = rows.hold_out(key_split, validation_fraction)
    found = _richer_base(model, rows, z_held_out, num_components)
    if found is not None:
        model = dataclasses.replace(model, base=found.as_base())
    points = _validation_points(key_validation, z_held_out, model.noise_range)
    points = placement.share(points, axis=0)
    settings = Settings(
        learning_rate=jnp.asarray(learning_rate, jnp.float32),
        num_steps=jnp.asarray(num_steps, jnp.float32),
        ema_decay=jnp.asarray(ema_decay, jnp.float32),
    )
    advance = _advance(loss_fn, model, settings, key_steps, rows, batch_size, placement)
    there = placement.replicate(model)
    losses = lambda weights: np.asarray(validate(loss_fn, there, weights, *points))
    evaluate = lambda weights: float(np.mean(losses(weights)))
    state = placement.replicate(init(model))
    untrained, at_first = state.average, losses(state.average)
    progress = Progress.start(state, float(np.mean(at_first)))
    save = lambda progress: None
    if checkpoint is not None:
        fingerprint = _fingerprint(
            key,
            rows,
            model,
            state.weights,
            num_steps=num_steps,
            batch_size=batch_size,
            learning_rate=learning_rate,
            validation_fraction=validation_fraction,
            ema_decay=ema_decay,
            standardise=standardise,
            num_components=num_components,
        )
        progress = load_progress(checkpoint, fingerprint, progress)
        save = lambda progress: save_progress(checkpoint, fingerprint, progress)
    weights, history = _train(
        advance,
        evaluate,
        progress,
        save,
        num_steps=num_steps,
        patience=patience,
        progress_bar=progress_bar,
        start=start,
    )
    if not _is_learned(at_first - losses(weights)):
        weights, history["best_step"] = untrained, np.asarray(0)
        base = model.base
        if found is not None:  # nothing is left to be chosen by the held-out rows
            every = np.concatenate([rows.some(MAX_ROWS), flat(z_held_out)])
            base = found.refit(every).as_base()
        model = dataclasses.replace(model, base=base, uses_network=False)
    return with_weights(model, placement.gather(weights)), history


def _is_learned(gain: np.ndarray) -> bool:
    """Whether the network is worth having: paired gains in held-out loss, ``(m,)``.

    On a base that is nearly the law itself, training lowers the loss by less than chance
    does and adds its own error to the density.
    """
    return bool(gain.mean() > _LEAST_GAIN * gain.std(ddof=1) / np.sqrt(len(gain)))


def _advance(
    loss_fn: LossFn,
    model: EnergyModel | ScoreModel,
    settings: Settings,
    key: jax.Array,
    rows: AbstractRows,
    batch_size: int,
    placement: Placement,
) -> Callable[[TrainState, int], tuple[TrainState, jax.Array]]:
    """``(state, steps) -> (state, mean loss)``: these steps, with their rows."""
    place = lambda lot: Minibatches(
        placement.share(lot, axis=1), shared=placement.mesh is not None
    )
    model, settings, key = placement.replicate((model, settings, key))

    def advance(state: TrainState, todo: int) -> tuple[TrainState, jax.Array]:
        first_step = int(state.step)
        state = placement.replicate(state)
        total = before = placement.replicate(jnp.zeros((), jnp.float32))
        for lot, num in rows.lots(key, first_step, todo, batch_size, place):
            before.block_until_ready()  # no more than two lots wait on the device
            before = total
            state, total = run_steps(
                loss_fn,
                model,
                state,
                settings,
                key,
                lot,
                jnp.asarray(num, jnp.int32),
                batch_size,
                total,
                placement.batch,
            )
        return state, total / todo

    return advance


def _fingerprint(
    key, rows, model, weights, **options: float | str | None
) -> dict[str, Any]:
    """What two calls must share for one to go on where the other stopped."""
    first = [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(weights)]
    summary = lambda a: [list(a.shape), zlib.crc32(np.ascontiguousarray(a).tobytes())]
    return {
        "key": np.asarray(jr.key_data(key)).tolist(),
        "samples": rows.identity(),
        **({} if rows.condition is None else {"condition": summary(rows.condition)}),
        "network": [type(model.network).__name__, zlib.crc32(b"".join(first))],
        "noise_range": list(model.noise_range),
        **options,
    }


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


def _build_model(
    network: AbstractEnergyNetwork | AbstractScoreNetwork,
    rows: AbstractRows,
    standardise: str | None,
    noise_range: tuple[float, float],
) -> EnergyModel | ScoreModel:
    """The untrained model."""
    loc, scale, base = rows.standardise(standardise, network.exchangeable)
    parts = {
        "base": base,
        "conditioning": rows.conditioning,
        # in double precision where that is on: `x - loc` must keep what `x` holds
        "loc": jnp.asarray(loc, float),
        "scale": jnp.asarray(scale, float),
        "noise_range": (float(noise_range[0]), float(noise_range[1])),
    }
    if isinstance(network, AbstractEnergyNetwork):
        return EnergyModel(network=network, reach=_REACH, **parts)
    return ScoreModel(network=network, **parts)


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


def _train(
    advance: Callable[[TrainState, int], tuple[TrainState, jax.Array]],
    evaluate: Callable[[Any], float],
    progress: Progress,
    save: Callable[[Progress], None],
    *,
    num_steps: int,
    patience: int | None,
    progress_bar: bool,
    start: float,
) -> tuple[Any, dict[str, np.ndarray]]:
    """Advance a few hundred steps at a time; the best average of the weights."""
    is_over = lambda: patience is not None and progress.since_best >= patience
    # a resumed fit goes on counting where it was interrupted
    earlier = progress.record["wall_time"][-1] if progress.done else 0.0
    bar = tqdm(
        total=num_steps,
        initial=progress.done,
        desc="fit",
        unit="step",
        disable=not progress_bar or bool(os.environ.get("CI")),
    )
    try:
        while progress.done < num_steps and not is_over():
            todo = min(_STEPS_PER_CALL, num_steps - progress.done)
            state, loss = advance(progress.state, todo)
            loss, validation_loss = float(loss), evaluate(state.average)
            if not (np.isfinite(loss) and np.isfinite(validation_loss)):
                _report_divergence(
                    progress.done + todo, loss, validation_loss, progress.best_step
                )
                break
            progress = progress.advanced(
                state,
                step=progress.done + todo,
                loss=loss,
                validation_loss=validation_loss,
                wall_time=earlier + time.perf_counter() - start,
            )
            save(progress)
            bar.update(todo)
            bar.set_postfix(loss=f"{loss:.4f}", validation=f"{validation_loss:.4f}")
    except KeyboardInterrupt:
        if progress.done == 0:
            raise
        warnings.warn(
            f"`fit` was interrupted after {progress.done} of {num_steps} steps; "
            f"returning the best weights so far, those of step {progress.best_step}.",
            UserWarning,
            stacklevel=3,
        )
    finally:
        bar.close()
    history = {name: np.asarray(values) for name, values in progress.record.items()}
    history["best_step"] = np.asarray(progress.best_step)
    history["stopped_early"] = np.asarray(is_over())
    return progress.best_weights, history


def _report_divergence(
    step: int, loss: float, validation_loss: float, best_step: int
) -> None:
    message = (
        f"training diverged before step {step}: loss {loss}, validation loss "
        f"{validation_loss}. Lower `learning_rate`, or look for outliers in `samples`."
    )
    if best_step == 0:
        raise FloatingPointError(message)
    warnings.warn(
        f"{message} Returning the best weights so far, those of step {best_step}.",
        UserWarning,
        stacklevel=4,
    )


def _validation_points(
    key: jax.Array, z: Any, noise_range: tuple[float, float]
) -> tuple[Any, jax.Array, jax.Array]:
    """Held-out rows, each several times if they are few, with fixed noise."""
    key_noise, key_level, key_order = jr.split(key, 3)
    num_rows = len(jax.tree.leaves(z)[0])
    num = max(_NUM_VALIDATION_POINTS // num_rows, 1)
    rows = np.tile(np.arange(num_rows), num)[:_NUM_VALIDATION_POINTS]
    z0 = jax.tree.map(lambda values: jnp.asarray(values[rows], jnp.float32), z)
    e = jr.normal(key_noise, jax.tree.leaves(z0)[0].shape, jnp.float32)
    log_r = draw_noise_levels(key_level, len(rows), noise_range)
    return z0, e, jr.permutation(key_order, log_r)


def _check_network(
    network: object,
    event_shape: tuple[int, ...],
    condition_shape: tuple[int, ...] | None,
) -> None:
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
        return
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


def _check_options(
    *,
    num_steps: object,
    batch_size: object,
    learning_rate: object,
    validation_fraction: object,
    patience: object,
    ema_decay: object,
    standardise: object,
    noise_range: Any,
) -> None:
    check_positive_int("num_steps", num_steps)
    check_positive_int("batch_size", batch_size)
    check_positive("learning_rate", learning_rate)
    check_fraction("validation_fraction", validation_fraction)
    check_fraction("ema_decay", ema_decay)
    if patience is not None:
        check_positive_int("patience", patience)
    if standardise not in ("coordinate", "global", None):
        raise ValueError(
            '`standardise` must be "coordinate", "global" or None; got '
            f"{standardise!r}."
        )
    if not isinstance(noise_range, tuple | list) or len(noise_range) != 2:
        raise ValueError(
            "`noise_range` must be the smallest and the largest noise-to-signal ratio; "
            f"got {noise_range!r}."
        )
    for value in noise_range:
        check_positive("noise_range", value)
    if noise_range[0] >= noise_range[1]:
        raise ValueError(
            f"`noise_range` must increase; got {noise_range!r}. Swap the two."
        )
