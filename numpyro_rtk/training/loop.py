"""The compiled part of training: many steps in one call, and the validation loss.

Everything that differs between two fits of the same shapes is an argument, so that
the second compiles nothing.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import optax

__all__ = [
    "LossFn",
    "Settings",
    "TrainState",
    "draw_noise_levels",
    "init",
    "run_steps",
    "validate",
    "with_weights",
]

LossFn = Callable[[Any, jax.Array, jax.Array, jax.Array], jax.Array]

_OPTIMISER = optax.chain(optax.clip_by_global_norm(1.0), optax.scale_by_adam())
_WARMUP = 0.05  # of the steps
_KNEE, _BELOW_KNEE = 2.0, 0.85


class Settings(NamedTuple):
    """Numbers of the optimisation, as scalar arrays.

    ``learning_rate``: the largest. ``num_steps``: the length of its schedule.
    ``ema_decay``: of the average of the weights.
    """

    learning_rate: jax.Array
    num_steps: jax.Array
    ema_decay: jax.Array


class TrainState(NamedTuple):
    """What one step hands to the next.

    ``weights``: the network's arrays. ``average``: their exponential moving average.
    ``opt_state``: the optimiser's. ``step``: steps done.
    """

    weights: Any
    average: Any
    opt_state: optax.OptState
    step: jax.Array


def init(model: Any) -> TrainState:
    """The state before the first step, from the model's network."""
    weights = eqx.filter(model.network, eqx.is_inexact_array)
    step = jnp.zeros((), jnp.int32)
    return TrainState(weights, weights, _OPTIMISER.init(weights), step)


def with_weights(model: Any, weights: Any) -> Any:
    """The model with these arrays in its network; all else is as it was."""
    network = eqx.combine(weights, model.network)
    return eqx.tree_at(lambda model: model.network, model, network)


def draw_noise_levels(
    key: jax.Array, num: int, noise_range: tuple[float, float]
) -> jax.Array:
    """Log noise-to-signal ratios, stratified over the range.

    Uniform on either side of twice the data's standard deviation, 85 % below it: beyond
    it the density is nearly the Gaussian base, and there is little to learn.

    Args:
        key: random key.
        num: how many.
        noise_range: smallest and largest ratio.

    Returns:
        Increasing log ratios, ``(num,)``.
    """
    low, high = math.log(noise_range[0]), math.log(noise_range[1])
    knee = min(max(math.log(_KNEE), low), high)
    share = _BELOW_KNEE if low < knee < high else float(knee == high)
    offset = jr.uniform(key, dtype=jnp.float32)
    position = (jnp.arange(num, dtype=jnp.float32) + offset) / num
    return jnp.interp(
        position, jnp.array([0.0, share, 1.0]), jnp.array([low, knee, high])
    ).astype(jnp.float32)


@eqx.filter_jit
def run_steps(
    loss_fn: LossFn,
    model: Any,
    state: TrainState,
    settings: Settings,
    key: jax.Array,
    z: Any,
    num_steps: jax.Array,
    batch_size: int,
) -> tuple[TrainState, jax.Array]:
    """Take ``num_steps`` steps; minibatches are drawn inside, with replacement.

    The random numbers of a step depend on ``key`` and the step's number alone. The
    learning rate rises linearly over the first 5 % of the schedule and falls to 0 along
    a cosine; gradients are clipped to norm 1. The average of the weights warms up: its
    decay at step ``i`` is at most ``(1 + i) / (10 + i)``.

    Args:
        loss_fn: ``(model, z0, e, log_r) -> loss`` of one point.
        model: whose network's arrays the state replaces.
        state: where to start.
        settings: of the optimisation.
        key: random key, the same for all calls of one fit.
        z: standardised rows, ``(n, *event_shape)``; of a conditional model a pair of
            them and their conditions, ``(n, *condition_shape)``.
        num_steps: an integer scalar.
        batch_size: points a step.

    Returns:
        The state after the steps, and the mean of their losses.
    """

    def one(_, carry):
        state, total = carry
        key_rows, key_noise, key_level = jr.split(jr.fold_in(key, state.step), 3)
        num_rows = jax.tree.leaves(z)[0].shape[0]
        chosen = jr.randint(key_rows, (batch_size,), 0, num_rows)
        z0 = jax.tree.map(lambda rows: rows[chosen], z)
        first = jax.tree.leaves(z0)[0]
        e = jr.normal(key_noise, first.shape, first.dtype)
        log_r = draw_noise_levels(key_level, batch_size, model.noise_range)
        mean_loss = lambda weights: _mean_loss(loss_fn, model, weights, z0, e, log_r)
        loss, grads = jax.value_and_grad(mean_loss)(state.weights)
        directions, opt_state = _OPTIMISER.update(grads, state.opt_state)
        rate = _learning_rate(settings, state.step)
        weights = jax.tree.map(lambda w, d: w - rate * d, state.weights, directions)
        decay = jnp.minimum(
            settings.ema_decay, (1.0 + state.step) / (10.0 + state.step)
        )
        average = optax.incremental_update(weights, state.average, 1.0 - decay)
        return TrainState(weights, average, opt_state, state.step + 1), total + loss

    start = (state, jnp.zeros((), jnp.float32))
    state, total = jax.lax.fori_loop(0, num_steps, one, start)
    return state, total / num_steps


@eqx.filter_jit
def validate(
    loss_fn: LossFn,
    model: Any,
    weights: Any,
    z0: Any,
    e: jax.Array,
    log_r: jax.Array,
) -> jax.Array:
    """Mean loss of these weights at fixed points, noise and noise levels."""
    return _mean_loss(loss_fn, model, weights, z0, e, log_r)


def _mean_loss(loss_fn, model, weights, z0, e, log_r):
    model = with_weights(model, weights)

    def loss(z0, e, log_r):
        if isinstance(z0, tuple):
            z0, condition = z0
            return loss_fn(model.given(condition), z0, e, log_r)
        return loss_fn(model, z0, e, log_r)

    return jnp.mean(jax.vmap(loss)(z0, e, log_r))


def _learning_rate(settings: Settings, step: jax.Array) -> jax.Array:
    progress = step / settings.num_steps
    rise = jnp.minimum((step + 1) / (_WARMUP * settings.num_steps), 1.0)
    fall = 0.5 * (1.0 + jnp.cos(jnp.pi * jnp.minimum(progress, 1.0)))
    return settings.learning_rate * rise * fall
