"""What the package asks of a density, and densities that are made of densities.

Whatever is trained, written down or handed in by a user is a :class:`Density`; what is
optional in one is looked up in this file alone. Inside the package it is a
:data:`BaseFn`, a function of a flat standardised position: :func:`standardised` makes it
one, :func:`product_base` and :func:`coupled_base` put several side by side.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol, TypeGuard

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from numpyro_rtk._checks import check_resolution
from numpyro_rtk.core.annealed import log_reference
from numpyro_rtk.core.segment import Evaluation
from numpyro_rtk.noise import signal

__all__ = [
    "BaseFn",
    "ConditionalDensity",
    "Density",
    "DensityWithEnergy",
    "Part",
    "Sampler",
    "check_conditional",
    "check_density",
    "check_resolved",
    "condition_shape_of",
    "coupled_base",
    "exact_sampler",
    "has_energy",
    "loc_and_scale",
    "product_base",
    "standardised",
    "usable",
    "value_and_grad",
]


class Density(Protocol):
    r"""A family of densities :math:`p_t` along a noise process; ``t = 0`` is the data.

    .. math:: x_t = \text{loc} + \text{scale}\,(a_t z_0 + s_t e), \qquad
              z_0 = (x_0 - \text{loc}) / \text{scale}

    ``t`` is OU time, a scalar; ``x`` is one position on the user's scale, of
    ``event_shape``. Two members are asked for, ``event_shape`` and ``score``. What more
    there is, is used:

    - ``log_density(x, t)``: normalised :math:`\log p_t`, a scalar. Without it there is no
      ``log_prob``, no exact acceptance, no weight and no evidence.
    - ``log_density_and_score(x, t)``: both, where one pass gives both.
    - ``loc``, ``scale``: of the process, broadcastable to ``event_shape``; 0 and 1 without.
      An annealed run starts at N(loc, scale**2), so they should be the data's.
    - ``sample(key, sample_shape)``: exact draws of :math:`p_0`, ``sample_shape +
      event_shape``. Without it draws come from annealed runs.

    A learned model has ``uses_network`` and ``sample_base`` as well: where the first is
    False, the second draws exactly.
    """

    @property
    def event_shape(self) -> tuple[int, ...]:
        """Shape of one draw."""
        ...

    def score(self, x: Any, t: Any, /) -> jax.Array:
        """Gradient of ``log p_t`` at ``x``, of its shape."""
        ...


class DensityWithEnergy(Density, Protocol):
    """A density that knows its log density, and not the score alone."""

    def log_density(self, x: Any, t: Any, /) -> jax.Array:
        """Normalised ``log p_t`` at ``x``, a scalar; arguments as of ``score``."""
        ...


class ConditionalDensity(Protocol):
    """A family p(x | c): one density of ``x`` for every ``c``.

    ``loc`` and ``scale``, if any, are those of the noise process for all ``c``.
    """

    @property
    def event_shape(self) -> tuple[int, ...]:
        """Shape of one draw."""
        ...

    @property
    def condition_shape(self) -> tuple[int, ...] | None:
        """Shape of one ``c``; None once it is given (then a density of ``x`` alone)."""
        ...

    def given(self, condition: Any, /) -> Density:
        """The density of ``x`` at one ``c``, ``condition_shape``, which may be traced."""
        ...


BaseFn = Callable[[jax.Array, jax.Array], Evaluation]
"""``(z (dim,) standardised, t ()) -> Evaluation`` of a density."""

Sampler = Callable[[jax.Array, tuple[int, ...]], jax.Array]
"""``(key, sample_shape) -> sample_shape + event_shape``."""


def check_density(name: str, density: Any) -> None:
    """Raise unless ``density`` is a :class:`Density` of ``x`` alone.

    Args:
        name: the argument's name, for the message.
        density: anything.

    Raises:
        TypeError: for anything without ``event_shape`` and ``score(x, t)``.
        ValueError: for a density p(x | c) whose condition is still open.
    """
    open_shape = condition_shape_of(density)
    if open_shape is not None:
        raise ValueError(
            f"`{name}` must be a density of x alone; got one of p(x | c), a "
            f"{type(density).__name__} with a condition of shape {open_shape}. Pass "
            f"`{name}.given(c)`."
        )
    missing = [a for a in ("event_shape", "score") if not hasattr(density, a)]
    if missing:
        raise TypeError(
            f"`{name}` must be an object with `event_shape` and `score(x, t)` (an "
            "EnergyModel, a ScoreModel, a GaussianMixture or your own); got "
            f"{type(density).__name__} without {missing}. Train one with `rtk.fit`."
        )


def check_conditional(name: str, density: Any) -> tuple[int, ...]:
    """The shape of one condition; raise unless ``density`` is p(x | c), still open.

    Raises:
        TypeError: for one without ``event_shape``.
        ValueError: for a density of ``x`` alone.
    """
    shape = condition_shape_of(density)
    if shape is None or not callable(getattr(density, "given", None)):
        raise ValueError(
            "`condition` must be None unless the density is conditional (with "
            f"`condition_shape` and `given(c)`); got a {type(density).__name__} without "
            "a condition. Learn one with `rtk.fit(key, samples, condition=...)`."
        )
    if not hasattr(density, "event_shape"):
        raise TypeError(
            f"`{name}` must have `event_shape` beside `condition_shape` and `given(c)`; "
            f"got a {type(density).__name__} without."
        )
    return shape


def check_resolved(name: str, density: Density | ConditionalDensity) -> None:
    """Refuse a scale that floating point numbers do not resolve, where it is known.

    Raises:
        ValueError: where a standard deviation holds fewer than 20 numbers.
    """
    loc, scale = (getattr(density, a, None) for a in ("loc", "scale"))
    if loc is None or scale is None:
        return
    if isinstance(loc, Tracer) or isinstance(scale, Tracer):
        return
    loc, scale = np.broadcast_arrays(np.asarray(loc), np.asarray(scale))
    dtype = np.float32 if loc.dtype == np.float32 else jnp.result_type(float)
    check_resolution(name, loc, scale, dtype)


def condition_shape_of(density: Any) -> tuple[int, ...] | None:
    """Shape of the condition that is to be given; None of a density of ``x`` alone."""
    shape = getattr(density, "condition_shape", None)
    return None if shape is None else tuple(shape)


def has_energy(density: Density) -> TypeGuard[DensityWithEnergy]:
    """Whether the density knows its log density and not the score alone."""
    return callable(getattr(density, "log_density", None))


def loc_and_scale(density: Density | ConditionalDensity) -> tuple[jax.Array, jax.Array]:
    """Centre and scale of the density's noise process, each of ``event_shape``."""
    shape = tuple(density.event_shape)
    loc = jnp.broadcast_to(jnp.asarray(getattr(density, "loc", 0.0)), shape)
    scale = jnp.broadcast_to(jnp.asarray(getattr(density, "scale", 1.0)), shape)
    dtype = jnp.result_type(float)
    return loc.astype(dtype), scale.astype(dtype)


def exact_sampler(density: Density) -> Sampler | None:
    """How the density draws from itself; None where it cannot, or not exactly."""
    own = getattr(density, "sample", None)
    if own is None and not getattr(density, "uses_network", True):
        own = getattr(density, "sample_base", None)
    return own


def _value_and_score(density: DensityWithEnergy, x: jax.Array, t: jax.Array):
    """Both, in one pass where the density has one."""
    both = getattr(density, "log_density_and_score", None)
    return both(x, t) if both else (density.log_density(x, t), density.score(x, t))


def standardised(
    density: Density,
    *,
    process: Density | ConditionalDensity | None = None,
    with_score: bool = True,
) -> BaseFn:
    """The density as a function of a flat standardised position.

    Without an energy the evaluation's log density is 0: only samplers that never read
    it may be given such a function.

    Args:
        density: of ``x`` alone.
        process: whose noise process it follows, where it is not its own: that of p(x | c)
            for a density at one ``c``.
        with_score: False where the log density, which the density then must have, will be
            differentiated; the score is 0.
    """
    shape = tuple(density.event_shape)
    loc, scale = loc_and_scale(density if process is None else process)
    log_jacobian = jnp.sum(jnp.log(scale))

    def evaluate(z: jax.Array, t: jax.Array) -> Evaluation:
        x = loc + scale * z.reshape(shape)
        if not has_energy(density):
            value, score = jnp.zeros((), z.dtype), density.score(x, t)
        elif with_score:
            value, score = _value_and_score(density, x, t)
            value = value + log_jacobian
        else:
            value = density.log_density(x, t) + log_jacobian
            return usable(value, jnp.zeros_like(z))
        return usable(value, jnp.ravel(scale * score))

    return evaluate


class Part(NamedTuple):
    """Independent copies of one density, side by side in the position vector.

    ``density``: of one copy, a ``BaseFn``. ``dim``: of one copy. ``copies``: how many.
    ``conditions``: further arguments of ``density``, arrays or trees of them, each with a
    leading axis of copies.
    """

    density: Callable[..., Evaluation]
    dim: int
    copies: int
    conditions: tuple[Any, ...] = ()

    def at(self, block: jax.Array, t: jax.Array) -> Evaluation:
        """Of each copy; ``block`` (copies, dim)."""
        axes = (0, None, *(0 for _ in self.conditions))
        return jax.vmap(self.density, in_axes=axes)(block, t, *self.conditions)

    def of_one(self, block: jax.Array, t: jax.Array) -> Evaluation:
        """Of the only copy; ``block`` (1, dim)."""
        first = jax.tree.map(lambda leaf: leaf[0], self.conditions)
        return self.density(block[0], t, *first)


def product_base(
    parts: Sequence[tuple], num_normal: int, row_of: np.ndarray | None = None
) -> BaseFn:
    """Independent copies of several densities and standard normals, side by side.

    Args:
        parts: :class:`Part` or ``(density, dim, copies)``, in the order of the position.
        num_normal: trailing coordinates with a standard normal law at every level.
        row_of: the row of each coordinate, ``(dim,)``, none of which parts a copy: log
            densities are then those of the rows, ``(R,)``.
    """
    parts = [Part(*part) for part in parts]
    if num_normal:
        # where there are rows, each coordinate is of one
        size = num_normal if row_of is None else 1
        normal = lambda z, t: Evaluation(log_reference(z), -z)
        parts.append(Part(normal, size, num_normal // size))
    num_rows = None if row_of is None else int(row_of.max()) + 1

    def evaluate(u: jax.Array, t: jax.Array) -> Evaluation:
        value = jnp.zeros(() if num_rows is None else (num_rows,), u.dtype)
        scores, start = [], 0
        for part in parts:
            stop = start + part.dim * part.copies
            block = u[start:stop].reshape(part.copies, part.dim)
            if row_of is not None:
                found = part.at(block, t)
                value = value.at[row_of[start : stop : part.dim]].add(found.log_density)
            elif part.copies == 1:
                found = part.of_one(block, t)
                value = value + found.log_density
            else:
                found = part.at(block, t)
                value = value + jnp.sum(found.log_density)
            scores.append(jnp.ravel(found.score))
            start = stop
        return Evaluation(value, jnp.concatenate(scores))

    return evaluate


def coupled_base(
    parts_at: Callable[[jax.Array], Sequence[tuple]],
    num_normal: int,
    forward_mode: bool = False,
) -> BaseFn:
    r"""As :func:`product_base`, where densities are conditional on other coordinates.

    .. math:: \sum_i \log p_t(u_i \mid c_i(a_t u)) + \log N(u_\text{normal})

    A condition is what it would be at the clean guess ``a_t u``, as the likelihood of a
    posterior path is; the gradient has the terms through it. Exact at ``t = 0``.

    Args:
        parts_at: the parts for a clean position; of their densities only the log density
            is used, which JAX must be able to differentiate.
        num_normal: trailing coordinates with a standard normal law at every level.
        forward_mode: see :func:`value_and_grad`.
    """

    def log_density(u, t):
        return product_base(parts_at(signal(t) * u), num_normal)(u, t).log_density

    both = value_and_grad(log_density, forward_mode)
    return lambda u, t: usable(*both(u, t))


def value_and_grad(function: Callable, forward_mode: bool) -> Callable:
    """Value and gradient with respect to the first of the arguments.

    Args:
        function: its value is a scalar, or several, of which the sum is differentiated:
            of rows that have nothing to do with one another each has its own gradient.
        forward_mode: differentiate forwards, which costs as many passes as there are
            coordinates but goes through a ``lax.while_loop``.

    Raises:
        ValueError: when called, where a function needs ``forward_mode`` and has it not.
    """

    def total(*args):
        value = function(*args)
        return jnp.sum(value), value

    if forward_mode:
        forwards = jax.jacfwd(total, has_aux=True)
        return lambda *args: forwards(*args)[::-1]
    backwards = jax.grad(total, has_aux=True)

    def evaluate(*args):
        try:
            return backwards(*args)[::-1]
        except ValueError as error:
            if "Reverse-mode differentiation" not in str(error):
                raise
            raise ValueError(
                "`forward_mode_differentiation` must be True for this model: it has a "
                "`lax.while_loop` or `lax.fori_loop` of unknown length, which JAX cannot "
                "differentiate backwards; got False. Pass it to the kernel, as to NUTS."
            ) from error

    return evaluate


def usable(value: jax.Array, score: jax.Array) -> Evaluation:
    """No density where it is NaN or +inf, no drift where the gradient is not finite."""
    value = jnp.where(value < jnp.inf, value, -jnp.inf)
    return Evaluation(value, jnp.where(jnp.isfinite(score), score, 0.0))
