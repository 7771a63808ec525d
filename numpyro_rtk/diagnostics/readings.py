r"""What else a network's output could mean: other readings of it, tried on noised rows.

A network that is told another time than it was trained with, or taken for a score where
it predicts noise, finds the added noise badly; read as it was meant, well. Only the
reading changes, so one compiled program of the bare network serves all.
"""

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from numpyro_rtk.density import Density, loc_and_scale
from numpyro_rtk.networks.wrapped import WrappedScore
from numpyro_rtk.schedules import (
    DDPM,
    EDM,
    OU,
    VE,
    VP,
    FlowMatching,
    RectifiedFlow,
    Schedule,
)

__all__ = ["Reading", "as_wrapped", "readings", "vectorised"]

Call = Callable[[jax.Array, jax.Array], jax.Array]


class Reading(NamedTuple):
    """One way to read a network.

    Attributes:
        mistake: what was mistaken if this is right; ends without a full stop.
        remedy: what to write.
        model_: the network so read; its ``predicted_noise`` takes many rows.
    """

    mistake: str
    remedy: str
    model_: WrappedScore


class _Clock(Schedule):
    """Another schedule, of which the network is told a multiple of the time, or its log."""

    inner: Schedule
    factor: float = eqx.field(static=True, default=1.0)
    is_log: bool = eqx.field(static=True, default=False)

    def alpha(self, r: jax.Array) -> jax.Array:
        return self.inner.alpha(r)

    def sigma(self, r: jax.Array) -> jax.Array:
        return self.inner.sigma(r)

    def time(self, r: jax.Array) -> jax.Array:
        time = self.inner.time(r)
        return self.factor * (jnp.log(time) if self.is_log else time)

    def noise_of_velocity(
        self, x: jax.Array, velocity: jax.Array, r: jax.Array
    ) -> jax.Array:
        return self.inner.noise_of_velocity(x, velocity, r)


class _Score(eqx.Module):
    """The score of a density of any kind as a network of its standardised position."""

    density: Any
    loc: jax.Array
    scale: jax.Array

    def __call__(self, z: jax.Array, time: jax.Array) -> jax.Array:
        return self.scale * self.density.score(self.loc + self.scale * z, time)


def as_wrapped(density: Density) -> WrappedScore:
    """Any density with a score, as a network that gives one in OU time."""
    if isinstance(density, WrappedScore):
        return density
    loc, scale = loc_and_scale(density)
    low, high = getattr(density, "noise_range", (0.01, np.inf))
    shape = tuple(density.event_shape)
    network = _Score(density, loc, scale)
    return WrappedScore(
        network, OU(), loc, scale, shape, "score", noise_range=(low, high)
    )


def vectorised(model_: WrappedScore) -> WrappedScore:
    """With a network that takes many rows ``(n, *event_shape)`` at one time."""

    @eqx.filter_jit
    def outputs(model_, x, time):
        return jax.vmap(lambda one: model_._call(one, time))(x)

    many = lambda x, time: outputs(model_, x, jnp.asarray(time, x.dtype))
    return dataclasses.replace(model_, network=many, batched=False)


def readings(model_: WrappedScore, rows: np.ndarray) -> Iterator[Reading]:
    """Other readings, from the smallest mistake to the largest.

    Args:
        model_: as it is, of many rows (:func:`vectorised`).
        rows: ``(n, dim)``, on the user's scale.
    """
    own = model_.schedule
    for predicts in _others(own, model_.predicts):
        yield _prediction(model_, predicts)
    yield _flipped(model_)
    for predicts in _others(own, model_.predicts):
        found = _prediction(_flipped(model_).model_, predicts)
        yield found._replace(
            mistake=f"{found.mistake}, with its sign flipped",
            remedy=f"{found.remedy}, and minus the output",
        )
    if not isinstance(model_.network, _Score):
        yield from _scales(model_, rows)
    for name, schedule in _schedules(own, float(rows.std())):
        inner = schedule.inner if isinstance(schedule, _Clock) else schedule
        for predicts in (model_.predicts, *_others(inner, model_.predicts)):
            if predicts not in inner.predictions:
                continue
            if getattr(inner, "raw", False) and predicts != "data":
                continue
            changed = dataclasses.replace(model_, schedule=schedule, predicts=predicts)
            is_clock = isinstance(schedule, _Clock)
            clock = f", with {_wrapping(schedule)}" if is_clock else ""
            also = (
                "" if predicts == model_.predicts else f", and gives {_WORDS[predicts]}"
            )
            yield Reading(
                f"the time is not mapped as in training: the network has the clock of "
                f"{name}{also}",
                f'`schedule=` {inner!r}, `predicts="{predicts}"`{clock}',
                changed,
            )


def _wrapping(clock: _Clock) -> str:
    """How a user tells a network that time."""
    time = "jnp.log(time)" if clock.is_log else f"{clock.factor:g} * time"
    return f"`partial(lambda net, x, time: net(x, {time}), net)` for the network"


_WORDS = {
    "noise": "noise",
    "data": "data (a denoiser)",
    "velocity": "a velocity",
    "score": "a score",
}


def _others(schedule: Schedule, predicts: str) -> list[str]:
    return [p for p in schedule.predictions if p != predicts]


def _prediction(model_: WrappedScore, predicts: str) -> Reading:
    return Reading(
        f"the output is {_WORDS[predicts]}, taken for {_WORDS[model_.predicts]}",
        f'`predicts="{predicts}"`',
        dataclasses.replace(model_, predicts=predicts),
    )


def _flipped(model_: WrappedScore) -> Reading:
    flipped = lambda x, time: -model_.network(x, time)
    return Reading(
        "the sign of the output is flipped",
        "minus the output",
        dataclasses.replace(model_, network=flipped),
    )


def _scales(model_: WrappedScore, rows: np.ndarray) -> Iterator[Reading]:
    """The usual standardisations, beside the one that was given."""
    low, high = rows.min(), rows.max()
    usual = {
        "`loc=0, scale=1` (the values as they are)": (0.0, 1.0),
        "mean and standard deviation of every coordinate": (rows.mean(0), rows.std(0)),
        "one mean and standard deviation for all": (rows.mean(), rows.std()),
        "[-1, 1]": (0.5 * (low + high), 0.5 * (high - low)),
        "[0, 1]": (low, high - low),
    }
    shape, like = model_.event_shape, model_.loc
    for name, numbers in usual.items():
        wide = (np.broadcast_to(a, rows.shape[1:]).reshape(shape) for a in numbers)
        loc, scale = (jnp.asarray(a, like.dtype) for a in wide)
        yield Reading(
            "`loc` and `scale` are not those of the training",
            f"`loc` and `scale`: {name}",
            dataclasses.replace(model_, loc=loc, scale=scale),
        )


def _schedules(own: Schedule, spread: float) -> Iterator[tuple[str, Schedule]]:
    """The usual ones, and the own one with the usual other clocks."""
    betas = np.linspace(1e-4, 0.02, 1000)
    ddpm, vp = DDPM(np.cumprod(1.0 - betas)), VP(0.1, 20.0)
    ve = own if isinstance(own, VE) else VE(0.01, 50.0)
    mine = type(own).__name__
    yield f"1000 times that of {mine}", _Clock(own, 1000.0)
    yield f"a thousandth of that of {mine}", _Clock(own, 1e-3)
    if isinstance(own, DDPM):
        num = len(own.log_noise)
        yield f"{mine}, index / {num}", _Clock(own, 1.0 / num)
    yield "VP(0.1, 20.0)", vp
    yield "OU()", OU()
    yield "VP(1.0, 1.0, end=10.0)", VP(1.0, 1.0, end=10.0)
    yield "VP(0.1, 20.0), times 1000", _Clock(vp, 1000.0)
    yield "DDPM with betas from 1e-4 to 0.02", ddpm
    yield f"VE({ve.sigma_min}, {ve.sigma_max})", VE(ve.sigma_min, ve.sigma_max)
    fraction = VE(ve.sigma_min, ve.sigma_max, time_is="fraction")
    yield f"VE({ve.sigma_min}, {ve.sigma_max}, time_is='fraction')", fraction
    yield "VE, told log(sigma)", _Clock(VE(0.01, 50.0), 1.0, is_log=True)
    yield "EDM(0.5, raw=True)", EDM(0.5, raw=True)
    yield f"EDM({spread:.3g}, raw=True)", EDM(spread, raw=True)
    yield "EDM(1.0, raw=True)", EDM(1.0, raw=True)
    yield "FlowMatching()", FlowMatching()
    yield "RectifiedFlow()", RectifiedFlow()
    yield "RectifiedFlow(), times 1000", _Clock(RectifiedFlow(), 1000.0)
