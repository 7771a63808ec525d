r"""Networks that were trained elsewhere, as densities with a score.

At OU time ``t`` and the standardised position ``u`` the network is asked at the same
noise-to-signal ratio ``r``, at :math:`x = (\alpha / a_t)\, u`. What it gives is turned into
the noise that it stands for, of which the score is

.. math:: \nabla \log p_t(u) = -\hat e / s_t .

==========  =======================================
prediction  noise
==========  =======================================
noise       the output
data        (x - alpha * output) / sigma
score       -sigma * output
velocity    what the schedule's velocity stands for
==========  =======================================
"""

import functools
import math
import warnings
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from numpyro_rtk._batch import map_over_batch
from numpyro_rtk._checks import (
    check_bool,
    check_finite_values,
    check_positive,
    check_positive_values,
)
from numpyro_rtk.networks.shapes import as_event_shape
from numpyro_rtk.noise import noise_to_signal, noise_variance, signal
from numpyro_rtk.schedules import Schedule

__all__ = ["WrappedScore", "as_pytree", "check_reading", "wrap"]

_PREDICTIONS = ("noise", "data", "velocity", "score")
_SMALLEST_NOISE = 0.01  # where a schedule names none: DDPM's own first step
_ENOUGH_NOISE = 5.0  # a run from pure noise begins at 20


class WrappedScore(eqx.Module):
    r"""The score of a network that was trained elsewhere; it has no density.

    Made by :meth:`numpyro_rtk.ScoreModel.from_network`. The noise process is

    .. math:: x_t = \text{loc} + \text{scale}\,(a_t z_0 + s_t e), \qquad
              z_0 = (x_0 - \text{loc}) / \text{scale},

    where ``z_0`` is what the network was trained on. Times outside ``noise_range`` are
    moved to its nearer end.

    Attributes:
        network: the callable, as a pytree of its arrays.
        schedule: of its noise.
        loc: of ``event_shape``; not trained.
        scale: of ``event_shape``; not trained.
        event_shape: shape of one sample.
        predicts: what the network gives.
        batched: whether it wants a leading axis.
        noise_range: smallest and largest noise-to-signal ratio that it is asked at.
    """

    network: Callable[..., jax.Array]
    schedule: Schedule
    loc: jax.Array
    scale: jax.Array
    event_shape: tuple[int, ...] = eqx.field(static=True)
    predicts: str = eqx.field(static=True)
    batched: bool = eqx.field(static=True, default=False)
    noise_range: tuple[float, float] = eqx.field(static=True, default=(0.01, math.inf))

    def score(self, x: jax.Array, t: jax.Array | float) -> jax.Array:
        """Gradient in ``x`` of the log density of ``x_t``, of the shape of ``x``.

        Args:
            x: ``batch + event_shape``, on the user's scale.
            t: OU time, a scalar or broadcastable to ``batch``.

        Raises:
            ValueError: for shapes that do not fit.
        """
        return map_over_batch(self._score, self.event_shape, x, t)

    def predicted_noise(self, z: jax.Array, t: jax.Array) -> jax.Array:
        """What the prediction stands for; ``z`` (event_shape) standardised, ``t`` ()."""
        r = noise_to_signal(t)
        alpha, sigma = self.schedule.alpha(r), self.schedule.sigma(r)
        x = z * (alpha / signal(t))
        out = jnp.asarray(self.schedule.call(self._call, x, r), x.dtype)
        if self.predicts == "noise":
            return out
        if self.predicts == "data":
            return (x - alpha * out) / sigma
        if self.predicts == "score":
            return -sigma * out
        return self.schedule.noise_of_velocity(x, out, r)

    def _score(self, x: jax.Array, t: jax.Array) -> jax.Array:
        low, high = (0.5 * math.log1p(r**2) for r in self.noise_range)
        t = jnp.clip(jnp.asarray(t, jnp.result_type(float)), low, high)
        noise = self.predicted_noise((x - self.loc) / self.scale, t)
        return -noise / (jnp.sqrt(noise_variance(t)) * self.scale)

    def _call(self, x: jax.Array, time: jax.Array) -> jax.Array:
        if self.batched:
            return self.network(x[None], time[None])[0]
        return self.network(x, time)

    def check(self) -> None:
        """Raise a ValueError unless every number in it is one that can be drawn with."""
        check_finite_values("loc", self.loc)
        check_positive_values("scale", self.scale)
        for path, leaf in jax.tree_util.tree_leaves_with_path(self.network):
            if eqx.is_inexact_array(leaf):
                check_finite_values(f"network{jax.tree_util.keystr(path)}", leaf)

    def __repr__(self) -> str:
        low, high = self.noise_range
        name = _name_of(self.network)
        return (
            f"ScoreModel.from_network({name}, event_shape={self.event_shape}, "
            f"predicts={self.predicts!r}, schedule={self.schedule!r}"
            f"{', batched=True' if self.batched else ''}; a score without a density, "
            f"held below noise {low:.3g} and above {high:.3g})"
        )


def wrap(
    fn: Callable[..., Any],
    event_shape: Any,
    *,
    predicts: str,
    schedule: Schedule,
    loc: Any = 0.0,
    scale: Any = 1.0,
    batched: bool = False,
    noise_range: Any = None,
) -> WrappedScore:
    """:meth:`numpyro_rtk.ScoreModel.from_network`, which see."""
    if not callable(fn):
        raise TypeError(
            f"`fn` must be a callable fn(x, time); got {type(fn).__name__}. Of a network "
            "with separate weights pass `functools.partial(network.apply, weights)`."
        )
    shape = as_event_shape(event_shape)
    check_bool("batched", batched)
    check_reading(predicts, schedule)
    model_ = WrappedScore(
        network=as_pytree(fn),
        schedule=schedule,
        loc=_of_event("loc", loc, shape),
        scale=_of_event("scale", scale, shape),
        event_shape=shape,
        predicts=predicts,
        batched=bool(batched),
        noise_range=_as_noise_range(noise_range, schedule),
    )
    if not any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves(model_)):
        check_positive_values("scale", model_.scale)
        check_finite_values("loc", model_.loc)
    _check_output(model_)
    return model_


def as_pytree(fn: Callable[..., Any]) -> Callable[..., Any]:
    """The callable as a pytree of JAX arrays, so that ``jit`` takes them as arguments.

    ``functools.partial`` is not one, and NumPy's arrays are constants to equinox.
    """
    if isinstance(fn, functools.partial) and not isinstance(fn, jax.tree_util.Partial):
        leaves = jax.tree.leaves(fn.func)
        is_plain = len(leaves) == 1 and leaves[0] is fn.func
        make = jax.tree_util.Partial if is_plain else eqx.Partial
        fn = make(fn.func, *fn.args, **(fn.keywords or {}))
    return jax.tree.map(_leaf_of_jax, fn)


def _leaf_of_jax(leaf: Any) -> Any:
    if isinstance(leaf, functools.partial):
        return as_pytree(leaf)
    return jnp.asarray(leaf) if isinstance(leaf, np.ndarray) else leaf


def check_reading(predicts: Any, schedule: Any) -> None:
    """Raise unless a network of this schedule can give this.

    Raises:
        TypeError: for a schedule that is none.
        ValueError: for an unknown prediction, or one that the schedule has not.
    """
    if not isinstance(predicts, str) or predicts not in _PREDICTIONS:
        raise ValueError(
            f"`predicts` must be one of {_PREDICTIONS}; got {predicts!r:.80}. A network "
            'trained to find the noise that was added gives "noise", a denoiser "data".'
        )
    if not isinstance(schedule, Schedule):
        made = isinstance(schedule, type) and issubclass(schedule, Schedule)
        remedy = f"Call it: `{schedule.__name__}(...)`." if made else ""
        raise TypeError(
            "`schedule` must be one of `rtk.schedules`, as `rtk.schedules.VP(0.1, 20.0)`; "
            f"got {schedule!r:.80}. {remedy}".rstrip()
        )
    name = type(schedule).__name__
    if predicts not in schedule.predictions:
        raise ValueError(
            f"`predicts` must be one of {schedule.predictions} with `schedule` {name}, "
            f'which has no velocity; got "{predicts}". A raw network of EDM is '
            '`schedule=rtk.schedules.EDM(sigma_data, raw=True)`, `predicts="data"`.'
        )
    if getattr(schedule, "raw", False) and predicts != "data":
        raise ValueError(
            f'`predicts` must be "data" with a raw network of {name}, whose output the '
            f'preconditioning turns into a denoiser; got "{predicts}". For a network '
            "without preconditioning pass `raw=False`."
        )


def _of_event(name: str, value: Any, shape: tuple[int, ...]) -> jax.Array:
    """An array of the event's shape."""
    try:
        array = jnp.asarray(value, jnp.result_type(float))
        return jnp.broadcast_to(array, shape)
    except (TypeError, ValueError):
        got = getattr(value, "shape", None)
        raise ValueError(
            f"`{name}` must be numbers that broadcast to `event_shape` {shape}; got "
            f"{type(value).__name__ if got is None else f'shape {got}'}. The network was "
            "trained on (x - loc) / scale."
        ) from None


def _as_noise_range(noise_range: Any, schedule: Schedule) -> tuple[float, float]:
    """Where the network is asked; by default all that the schedule was trained on."""
    low, high = schedule.noise_range
    if noise_range is not None:
        try:
            low, high = noise_range
        except (TypeError, ValueError):
            raise TypeError(
                "`noise_range` must be two numbers, the smallest and the largest "
                f"noise-to-signal ratio, or None; got {noise_range!r:.80}."
            ) from None
    low = _SMALLEST_NOISE if low is None else low
    check_positive("noise_range", low)
    if high is not None and high != math.inf:
        check_positive("noise_range", high)
    low, high = float(low), math.inf if high is None else float(high)
    if low >= high:
        raise ValueError(f"`noise_range` must increase; got {(low, high)}.")
    if high < _ENOUGH_NOISE:
        warnings.warn(
            f"The network was trained up to a noise-to-signal ratio of {high:.3g}, and "
            "runs begin at 20 (`noise_range`): above it the score is held, which is right "
            "only where nearly all is noise. If that is not the schedule of the training, "
            "correct it (`DDPM` takes cumulative products, `VE` the data's own units).",
            UserWarning,
            stacklevel=4,
        )
    return low, high


def _check_output(model_: WrappedScore) -> None:
    """Call the network at both ends of its noise and between: shape, type, finite."""
    shape, (low, high) = model_.event_shape, model_.noise_range
    levels = np.geomspace(low, min(high, 20.0) if low < 20.0 else high, 3)
    leading = (1,) if model_.batched else ()
    spec = jax.ShapeDtypeStruct((*leading, *shape), jnp.result_type(float))
    time = jax.ShapeDtypeStruct(leading, spec.dtype)
    try:
        found = eqx.filter_eval_shape(model_.network, spec, time)
    except Exception as error:  # whatever a network makes of a wrong shape
        raise ValueError(
            f"`fn` must take x of shape {spec.shape} and a time of shape "
            f"{time.shape}; it raised {type(error).__name__}: {error!s:.300}. "
            f"Pass `batched={not model_.batched}` if it wants "
            f"{'one item' if model_.batched else 'a leading axis'}, or wrap it."
        ) from error
    got, dtype = getattr(found, "shape", None), getattr(found, "dtype", np.dtype(int))
    if got != spec.shape or not jnp.issubdtype(dtype, jnp.floating):
        kind = f"{dtype} of shape {got}" if got is not None else type(found).__name__
        raise ValueError(
            "`fn` must return one array of floating point numbers of the shape of x, "
            f"{spec.shape}; got {kind}. Of several outputs, or of channels that are "
            "a learned variance, return the prediction alone."
        )
    x = jnp.asarray(np.random.default_rng(0).normal(size=shape), spec.dtype)
    arrays = jax.tree.leaves((model_.network, model_.loc, model_.scale))
    if any(isinstance(leaf, Tracer) for leaf in arrays):
        return
    predict = eqx.filter_jit(lambda model_, t: model_.predicted_noise(x, t))
    for r in levels:
        noise = predict(model_, jnp.asarray(0.5 * np.log1p(r**2), spec.dtype))
        if not bool(jnp.all(jnp.isfinite(noise))):
            time = float(model_.schedule.time(jnp.asarray(r, spec.dtype)))
            raise ValueError(
                f"`fn` must return finite numbers; got NaN or infinite ones at its time "
                f"{time:.4g} (noise-to-signal ratio {r:.3g}). Correct `schedule`, or leave "
                "that noise out by `noise_range`."
            )


def _name_of(network: Any) -> str:
    """Of a class, a function, or what is partially applied."""
    inner = getattr(network, "func", network)
    inner = getattr(inner, "__self__", inner)
    return getattr(inner, "__name__", type(inner).__name__)
