"""The optimiser of a fit: Adam along a schedule, or one of the user's."""

import re
import zlib
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from numpyro_rtk._checks import check_finite_values

__all__ = [
    "DEFAULT_OPTIMIZER",
    "Settings",
    "check_opt_state",
    "optimizer_fingerprint",
    "scheduled_rate",
    "updated",
]

_CLIP_NORM = 1.0
_WARMUP = 0.05  # of the steps
_ADDRESS = re.compile(r"0x[0-9a-f]+")  # of an object: another in every process


class Settings(NamedTuple):
    """Numbers of the optimisation, as scalar arrays.

    ``learning_rate``: the largest, of :data:`DEFAULT_OPTIMIZER`. ``num_steps``: the length
    of its schedule. ``ema_decay``: of the average of the weights.
    """

    learning_rate: jax.Array
    num_steps: jax.Array
    ema_decay: jax.Array


def _by_rate(
    updates: Any, state: Any, params: Any = None, **extra: Any
) -> tuple[Any, Any]:
    rate = extra["rate"]
    return jax.tree.map(lambda update: -rate * update, updates), state


# The rate comes with each update, as an array: fits that differ in it share a program.
DEFAULT_OPTIMIZER = optax.chain(
    optax.clip_by_global_norm(_CLIP_NORM),
    optax.scale_by_adam(),
    optax.GradientTransformationExtraArgs(optax.init_empty_state, _by_rate),
)


def scheduled_rate(settings: Settings, step: jax.Array) -> jax.Array:
    """Of the default optimiser: up a line for 5 % of the steps, then down a cosine."""
    progress = step / settings.num_steps
    rise = jnp.minimum((step + 1) / (_WARMUP * settings.num_steps), 1.0)
    fall = 0.5 * (1.0 + jnp.cos(jnp.pi * jnp.minimum(progress, 1.0)))
    return settings.learning_rate * rise * fall


def updated(
    optimizer: optax.GradientTransformation,
    weights: Any,
    opt_state: optax.OptState,
    grads: Any,
    *,
    loss: jax.Array | float,
    rate: jax.Array | float,
) -> tuple[Any, optax.OptState]:
    """Weights and the optimiser's state after one step; it may ignore loss and rate."""
    change = optax.with_extra_args_support(optimizer).update
    updates, opt_state = change(grads, opt_state, weights, value=loss, rate=rate)
    return optax.apply_updates(weights, updates), opt_state


def check_opt_state(opt_state: optax.OptState, weights: Any, step: int) -> None:
    """Raise a ValueError unless a state, read from a file, can be one at this step.

    Of another optimiser than :data:`DEFAULT_OPTIMIZER` everything is taken: what its
    numbers mean, infinity for one, it alone knows.
    """
    default = jax.eval_shape(DEFAULT_OPTIMIZER.init, weights)
    if jax.tree.structure(opt_state) != jax.tree.structure(default):
        return
    for path, leaf in jax.tree_util.tree_leaves_with_path(opt_state):
        check_finite_values(f"state.opt_state{jax.tree_util.keystr(path)}", leaf)
    adam: Any = opt_state[1]  # type: ignore[index]
    if int(adam.count) != step:
        raise ValueError(f"`state` must be that of step {step}; got {int(adam.count)}.")
    if any(bool(jnp.any(leaf < 0)) for leaf in jax.tree.leaves(adam.nu)):
        raise ValueError(
            "`state` must have squares of gradients that are not negative."
        )


def optimizer_fingerprint(
    optimizer: optax.GradientTransformation, weights: Any
) -> dict[str, int]:
    """What can be known of an optimiser before it is used, ready for JSON.

    An optimiser is two functions. Its first state for these weights is a checksum, and
    so is the program of its step, with every constant (learning rate, schedule, decay).
    What Python would compute while that runs (``jax.pure_callback``) is not in it; and
    another version of JAX or optax may write the same program otherwise.
    """
    state = optimizer.init(weights)
    step = lambda weights, state, grads: updated(
        optimizer, weights, state, grads, loss=0.0, rate=0.0
    )
    program = jax.make_jaxpr(step)(weights, state, weights)
    text = _ADDRESS.sub("", str(program)).encode()
    return {
        "program": _checksum(program.consts, zlib.crc32(text)),
        "first_state": _checksum(jax.tree.leaves(state)),
    }


def _checksum(arrays: list, start: int = 0) -> int:
    for array in arrays:
        start = zlib.crc32(np.ascontiguousarray(array).tobytes(), start)
    return start
