"""The compiled part of training: many steps in one call, and the validation loss."""

from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import optax

__all__ = ["TrainState", "build_run_steps", "build_validation", "draw_noise_levels"]

LossFn = Callable[[Any, jax.Array, jax.Array, jax.Array], jax.Array]


class TrainState(NamedTuple):
    """What one step hands to the next.

    ``params``: the network's arrays. ``average``: their exponential moving average.
    ``opt_state``: the optimiser's. ``step``: steps done.
    """

    params: Any
    average: Any
    opt_state: optax.OptState
    step: jax.Array


def draw_noise_levels(
    key: jax.Array, num: int, noise_range: tuple[float, float]
) -> jax.Array:
    """Log noise-to-signal ratios, stratified uniform over the range, ``(num,)``."""
    low, high = jnp.log(jnp.asarray(noise_range, jnp.float32))
    offset = jr.uniform(key, dtype=jnp.float32)
    position = (jnp.arange(num, dtype=jnp.float32) + offset) / num
    return low + (high - low) * position


def build_run_steps(
    loss_fn: LossFn,
    rebuild: Callable[[Any], Any],
    optimiser: optax.GradientTransformation,
    *,
    batch_size: int,
    ema_decay: float,
    noise_range: tuple[float, float],
) -> Callable[
    [jax.Array, TrainState, jax.Array, jax.Array], tuple[TrainState, jax.Array]
]:
    """A compiled ``(key, state, z, num_steps) -> (state, mean loss)``.

    Minibatches are drawn with replacement inside, from ``z`` (n, *event_shape); the
    random numbers of a step depend on ``key`` and the step's number alone. The average
    of the weights warms up: its decay at step ``i`` is at most ``(1 + i) / (10 + i)``.

    Args:
        loss_fn: ``(model, z0, e, log_r) -> loss`` of one point.
        rebuild: from the network's arrays to the model.
        optimiser: of the network's arrays.
        batch_size: points a step.
        ema_decay: of the average of the weights.
        noise_range: smallest and largest noise-to-signal ratio.
    """

    def batch_loss(params: Any, z0: jax.Array, e: jax.Array, log_r: jax.Array):
        model = rebuild(params)
        return jnp.mean(jax.vmap(lambda *point: loss_fn(model, *point))(z0, e, log_r))

    def run_steps(key, state, z, num_steps):
        def one(_, carry):
            state, total = carry
            key_rows, key_noise, key_level = jr.split(jr.fold_in(key, state.step), 3)
            rows = jr.randint(key_rows, (batch_size,), 0, z.shape[0])
            z0 = z[rows]
            e = jr.normal(key_noise, z0.shape, z.dtype)
            log_r = draw_noise_levels(key_level, batch_size, noise_range)
            loss, grads = jax.value_and_grad(batch_loss)(state.params, z0, e, log_r)
            updates, opt_state = optimiser.update(grads, state.opt_state, state.params)
            params = optax.apply_updates(state.params, updates)
            decay = jnp.minimum(ema_decay, (1.0 + state.step) / (10.0 + state.step))
            average = optax.incremental_update(params, state.average, 1.0 - decay)
            return TrainState(params, average, opt_state, state.step + 1), total + loss

        start = (state, jnp.zeros((), jnp.float32))
        state, total = jax.lax.fori_loop(0, num_steps, one, start)
        return state, total / num_steps

    return jax.jit(run_steps)


def build_validation(
    loss_fn: LossFn,
    rebuild: Callable[[Any], Any],
    z0: jax.Array,
    e: jax.Array,
    log_r: jax.Array,
) -> Callable[[Any], jax.Array]:
    """A compiled ``params -> mean loss`` at fixed points, noise and noise levels."""

    @eqx.filter_jit
    def validate(params, z0, e, log_r):
        model = rebuild(params)
        return jnp.mean(jax.vmap(lambda *point: loss_fn(model, *point))(z0, e, log_r))

    return lambda params: validate(params, z0, e, log_r)
