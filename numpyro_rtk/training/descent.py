"""The steps of a fit: some hundred at a time, and the held-out loss between them."""

import math
import os
import time
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
from tqdm import tqdm

from numpyro_rtk.networks.model import EnergyModel, ScoreModel
from numpyro_rtk.training.checkpoint import Progress
from numpyro_rtk.training.devices import Placement
from numpyro_rtk.training.loop import (
    LossFn,
    Minibatches,
    TrainState,
    draw_noise_levels,
    init,
    run_steps,
    validate,
)
from numpyro_rtk.training.losses import denoising_score_matching, dual_score_matching
from numpyro_rtk.training.optimizer import DEFAULT_OPTIMIZER, Settings
from numpyro_rtk.training.options import Options
from numpyro_rtk.training.rows import AbstractRows

__all__ = ["Descent", "descend"]

_NUM_VALIDATION_POINTS = 4096
_STEPS_PER_EVALUATION = 250


class Descent(NamedTuple):
    """What the steps of a fit have in common.

    Attributes:
        loss_fn: of one point.
        optimizer: that of the user, or the default one.
        model: whose network is trained, on every device.
        settings: of the optimisation.
        key: of the steps, each of which derives its own.
        rows: to train on.
        batch_size: noisy points a step.
        placement: of arrays on devices.
        points: held-out rows, noise and noise levels.
    """

    loss_fn: LossFn
    optimizer: optax.GradientTransformation
    model: EnergyModel | ScoreModel
    settings: Settings
    key: jax.Array
    rows: AbstractRows
    batch_size: int
    placement: Placement
    points: tuple[Any, jax.Array, jax.Array]

    @classmethod
    def prepare(
        cls,
        model: EnergyModel | ScoreModel,
        rows: AbstractRows,
        z_held_out: Any,
        options: Options,
        placement: Placement,
        key_validation: jax.Array,
        key_steps: jax.Array,
    ) -> "Descent":
        """For an untrained model and the rows held out from it, standardised."""
        is_energy = isinstance(model, EnergyModel)
        optimizer = options.training.optimizer
        single = lambda number: jnp.asarray(number, jnp.float32)
        settings = Settings(
            # another optimiser than the default one does not look at it
            learning_rate=single(options.learning_rate or 0.0),
            num_steps=single(options.num_steps),
            ema_decay=single(options.training.ema_decay),
        )
        points = _validation_points(key_validation, z_held_out, model.noise_range)
        model, settings, key = placement.replicate((model, settings, key_steps))
        return cls(
            loss_fn=dual_score_matching if is_energy else denoising_score_matching,
            optimizer=DEFAULT_OPTIMIZER if optimizer is None else optimizer,
            model=model,
            settings=settings,
            key=key,
            rows=rows,
            batch_size=options.batch_size,
            placement=placement,
            points=placement.share(points, axis=0),
        )

    def first_state(self) -> TrainState:
        """Before the first step."""
        return self.placement.replicate(init(self.model, self.optimizer))

    def held_out_losses(self, weights: Any) -> np.ndarray:
        """Of these weights at the held-out points, ``(m,)``."""
        return np.asarray(validate(self.loss_fn, self.model, weights, *self.points))

    def advance(self, state: TrainState, num_steps: int) -> tuple[TrainState, float]:
        """The state after more steps, and their mean loss."""
        state = self.placement.replicate(state)
        total = before = self.placement.replicate(jnp.zeros((), jnp.float32))
        blocks = self.rows.blocks(
            self.key, int(state.step), num_steps, self.batch_size, self._place
        )
        for block, num in blocks:
            before.block_until_ready()  # no more than two blocks wait on the device
            before = total
            state, total = run_steps(
                self.loss_fn,
                self.optimizer,
                self.model,
                state,
                self.settings,
                self.key,
                block,
                jnp.asarray(num, jnp.int32),
                self.batch_size,
                total,
                self.placement.batch,
            )
        return state, float(total / num_steps)

    def _place(self, block: Any) -> Minibatches:
        shared = self.placement.mesh is not None
        return Minibatches(self.placement.share(block, axis=1), shared=shared)


def descend(
    descent: Descent,
    progress: Progress,
    options: Options,
    *,
    save: Callable[[Progress], None] | None,
    progress_bar: bool,
    start: float,
) -> Progress:
    """Step and evaluate until the last step, the end of patience, or an interruption.

    Args:
        descent: what the steps have in common.
        progress: from which to go on.
        options: of the fit.
        save: called with the progress after every evaluation, if it is to be kept.
        progress_bar: whether one is shown.
        start: when the fit began, ``time.perf_counter()``.

    Raises:
        FloatingPointError: where the loss is not finite before any weights worth
            returning.
        KeyboardInterrupt: the user's, before the first evaluation.
    """
    num_steps, patience = options.num_steps, options.training.patience
    # a resumed fit goes on counting where it was interrupted
    start -= progress.record["wall_time"][-1] if progress.done else 0.0
    bar = _bar(progress.done, num_steps, progress_bar)
    try:
        while progress.done < num_steps and not progress.is_over(patience):
            todo = min(_STEPS_PER_EVALUATION, num_steps - progress.done)
            state, loss = descent.advance(progress.state, todo)
            validation_loss = float(np.mean(descent.held_out_losses(state.average)))
            if not (math.isfinite(loss) and math.isfinite(validation_loss)):
                _report_divergence(progress, todo, loss, validation_loss)
                break
            progress = progress.advanced(
                state,
                step=progress.done + todo,
                loss=loss,
                validation_loss=validation_loss,
                wall_time=time.perf_counter() - start,
            )
            if save is not None:
                save(progress)
            bar.update(todo)
            bar.set_postfix(loss=f"{loss:.4f}", validation=f"{validation_loss:.4f}")
    except KeyboardInterrupt:
        if progress.done == 0:
            raise
        warnings.warn(
            f"`fit` was interrupted after {progress.done} of {num_steps} steps; "
            f"{_best_so_far(progress)}",
            UserWarning,
            stacklevel=4,
        )
    finally:
        bar.close()
    return progress


def _bar(done: int, num_steps: int, is_shown: bool) -> tqdm:
    return tqdm(
        total=num_steps,
        initial=done,
        desc="fit",
        unit="step",
        disable=not is_shown or bool(os.environ.get("CI")),
    )


def _report_divergence(
    progress: Progress, todo: int, loss: float, validation_loss: float
) -> None:
    message = (
        f"training diverged before step {progress.done + todo}: loss {loss}, validation "
        f"loss {validation_loss}. Lower `learning_rate`, or look for outliers in "
        "`samples`."
    )
    if progress.best_step == 0:
        raise FloatingPointError(message)
    warnings.warn(f"{message} {_best_so_far(progress)}", UserWarning, stacklevel=5)


def _best_so_far(progress: Progress) -> str:
    return f"Returning the best weights so far, those of step {progress.best_step}."


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
