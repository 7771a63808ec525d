"""The compiled part of training: many steps in one call, and the validation loss.

Everything that differs between two fits of the same shapes is an argument, so that
the second compiles nothing.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import optax
from jax.sharding import NamedSharding

from numpyro_rtk._checks import check_finite_values
from numpyro_rtk.training.optimizer import (
    DEFAULT_OPTIMIZER,
    Settings,
    check_opt_state,
    scheduled_rate,
    updated,
)

__all__ = [
    "LossFn",
    "Minibatches",
    "Resident",
    "TrainState",
    "check_state",
    "draw_noise_levels",
    "draw_rows",
    "init",
    "run_steps",
    "validate",
    "with_weights",
]

LossFn = Callable[[Any, jax.Array, jax.Array, jax.Array], jax.Array]

_KNEE, _BELOW_KNEE = 2.0, 0.85


class TrainState(NamedTuple):
    """What one step hands to the next.

    ``weights``: the network's arrays. ``average``: their exponential moving average.
    ``opt_state``: the optimiser's. ``step``: steps done.
    """

    weights: Any
    average: Any
    opt_state: optax.OptState
    step: jax.Array


class Resident(NamedTuple):
    """All rows in the device's memory: a step draws its minibatch of them.

    ``values``: a pytree of arrays ``(n, ...)``.
    """

    values: Any

    def minibatch(self, index: jax.Array, key: jax.Array, batch_size: int) -> Any:
        """Rows for one step; ``index``, of the step in this call, is not used."""
        num_rows = jax.tree.leaves(self.values)[0].shape[0]
        chosen = jr.randint(key, (batch_size,), 0, num_rows)
        return jax.tree.map(lambda values: values[chosen], self.values)


class Minibatches(NamedTuple):
    """Rows that the host has drawn, or read, for each step of a call.

    ``values``: a pytree of arrays ``(steps, batch_size, ...)``. ``shared``: whether
    several devices have a part of each batch.
    """

    values: Any
    shared: bool = False

    def minibatch(self, index: jax.Array, key: jax.Array, batch_size: int) -> Any:
        """Rows for step ``index`` of this call; nothing is drawn."""
        if self.shared:
            return jax.tree.map(lambda values: values[index], self.values)
        # gathered, not sliced: what XLA fuses, hence rounds, is then as with Resident
        chosen = index * batch_size + jnp.arange(batch_size)
        flat = lambda values: values.reshape((-1, *values.shape[2:]))
        return jax.tree.map(lambda values: flat(values)[chosen], self.values)


def init(
    model: Any, optimizer: optax.GradientTransformation = DEFAULT_OPTIMIZER
) -> TrainState:
    """The state before the first step, from the model's network."""
    weights = eqx.filter(model.network, eqx.is_inexact_array)
    step = jnp.zeros((), jnp.int32)
    return TrainState(weights, weights, optimizer.init(weights), step)


def check_state(state: TrainState, step: int) -> None:
    """Raise a ValueError unless a state, read from a file, is one after ``step`` steps."""
    for name in ("weights", "average"):
        leaves = jax.tree_util.tree_leaves_with_path(getattr(state, name))
        for path, leaf in leaves:
            check_finite_values(f"state.{name}{jax.tree_util.keystr(path)}", leaf)
    if int(state.step) != step:
        raise ValueError(f"`state` must be that of step {step}; got {int(state.step)}.")
    check_opt_state(state.opt_state, state.weights, step)


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


def _step_keys(key: jax.Array, step: jax.Array) -> jax.Array:
    """Keys of a step's rows, noise and noise levels."""
    return jr.split(jr.fold_in(key, step), 3)


@partial(jax.jit, static_argnames=("num_steps", "batch_size"))
def draw_rows(
    key: jax.Array,
    first_step: jax.Array,
    num_rows: jax.Array,
    *,
    num_steps: int,
    batch_size: int,
) -> jax.Array:
    """The rows that :class:`Resident` draws in these steps, ``(num_steps, batch_size)``."""

    def one(step):
        return jr.randint(_step_keys(key, step)[0], (batch_size,), 0, num_rows)

    # one after the other: not every generator of JAX draws the same under vmap
    return jax.lax.map(one, first_step + jnp.arange(num_steps))


@eqx.filter_jit
def run_steps(
    loss_fn: LossFn,
    optimizer: optax.GradientTransformation,
    model: Any,
    state: TrainState,
    settings: Settings,
    key: jax.Array,
    rows: Resident | Minibatches,
    num_steps: jax.Array,
    batch_size: int,
    total: jax.Array,
    sharding: NamedSharding | None = None,
) -> tuple[TrainState, jax.Array]:
    """Take ``num_steps`` steps.

    The random numbers of a step depend on ``key`` and the step's number alone. The
    average of the weights warms up: its decay at step ``i`` is at most
    ``(1 + i) / (10 + i)``. Compiled once for each loss and optimiser, as objects.

    Args:
        loss_fn: ``(model, z0, e, log_r) -> loss`` of one point.
        optimizer: whose state is in ``state``.
        model: whose network's arrays the state replaces.
        state: where to start.
        settings: of the optimisation.
        key: random key, the same for all calls of one fit.
        rows: standardised; of a conditional model pairs of values and conditions.
        num_steps: an integer scalar.
        batch_size: points a step.
        total: sum of the losses of earlier steps, a scalar.
        sharding: of the batch over several devices; None: one device.

    Returns:
        The state after the steps, and ``total`` with their losses added.
    """

    def one(index, carry):
        state, total = carry
        key_rows, key_noise, key_level = _step_keys(key, state.step)
        z0 = rows.minibatch(index, key_rows, batch_size)
        first = jax.tree.leaves(z0)[0]
        e = jr.normal(key_noise, first.shape, first.dtype)
        log_r = draw_noise_levels(key_level, batch_size, model.noise_range)
        if sharding is not None:
            z0, e, log_r = jax.lax.with_sharding_constraint((z0, e, log_r), sharding)
        mean_loss = lambda weights: jnp.mean(
            _losses(loss_fn, model, weights, z0, e, log_r)
        )
        loss, grads = jax.value_and_grad(mean_loss)(state.weights)
        rate = scheduled_rate(settings, state.step)
        weights, opt_state = updated(
            optimizer, state.weights, state.opt_state, grads, loss=loss, rate=rate
        )
        decay = jnp.minimum(
            settings.ema_decay, (1.0 + state.step) / (10.0 + state.step)
        )
        average = optax.incremental_update(weights, state.average, 1.0 - decay)
        return TrainState(weights, average, opt_state, state.step + 1), total + loss

    return jax.lax.fori_loop(0, num_steps, one, (state, total))


@eqx.filter_jit
def validate(
    loss_fn: LossFn,
    model: Any,
    weights: Any,
    z0: Any,
    e: jax.Array,
    log_r: jax.Array,
) -> jax.Array:
    """Losses of these weights at fixed points, noise and noise levels, ``(m,)``."""
    return _losses(loss_fn, model, weights, z0, e, log_r)


def _losses(loss_fn, model, weights, z0, e, log_r):
    model = with_weights(model, weights)

    def loss(z0, e, log_r):
        if isinstance(z0, tuple):
            z0, condition = z0
            return loss_fn(model.given(condition), z0, e, log_r)
        return loss_fn(model, z0, e, log_r)

    return jax.vmap(loss)(z0, e, log_r)
