r"""Conditions: what a density p(x | c) is given, and the part of x that is linear in it.

With :math:`\tilde c = (c - \text{loc}) / \text{scale}` and the regression
:math:`z \approx B \tilde c` on standardised data, what is left has the covariance of the
Gaussian base. Under the noise the Gaussian of mean :math:`B \tilde c` becomes one of mean
:math:`a_t B \tilde c`, exactly normalised for every ``c``; the noise's own centre and
scale know nothing of ``c``.
"""

import dataclasses
import math
from typing import Any, Self

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jax.core import Tracer

from numpyro_rtk._checks import (
    check_finite_values,
    check_positive,
    check_positive_values,
)
from numpyro_rtk.gaussians import NoisedMixture
from numpyro_rtk.noise import time_from_noise_to_signal

__all__ = [
    "Conditional",
    "Conditioning",
    "as_condition",
    "fit_conditioning",
]


class Conditioning(eqx.Module):
    """A condition's standardisation, and the regression of the data on it.

    Attributes:
        loc: mean of the condition, of its shape; not trained.
        scale: its standard deviation, of its shape; not trained.
        weights: ``B``, ``(dim, condition_dim)``; not trained.
    """

    loc: jax.Array
    scale: jax.Array
    weights: jax.Array

    def standardised(self, condition: jax.Array) -> jax.Array:
        """Of mean 0 and variance 1 over the data, of the condition's shape."""
        return (condition - self.loc) / self.scale

    def mean(self, standardised: jax.Array) -> jax.Array:
        """Mean of the standardised data, ``(dim,)``, of a standardised condition."""
        return self.weights @ jnp.ravel(standardised)

    def check(self, name: str) -> None:
        """Raise a ValueError, about ``name``, unless its numbers are possible ones."""
        check_finite_values(f"{name}.loc", self.loc)
        check_positive_values(f"{name}.scale", self.scale)
        check_finite_values(f"{name}.weights", self.weights)


class Conditional(eqx.Module):
    """What models of p(x) and of p(x | c) have in common.

    Attributes:
        base: the Gaussian of the standardised data, or of what the regression leaves.
        loc: mean of the data, of the event's shape.
        scale: standard deviation of the data, of the event's shape.
        noise_range: smallest and largest trained noise-to-signal ratio.
        uses_network: whether the density is more than its base.
        reach: within which the network sees its input, in standard deviations; or None.
        conditioning: None for a model of p(x).
        bound: the standardised condition, once it is given.
    """

    network: eqx.AbstractVar[Any]
    base: eqx.AbstractVar[NoisedMixture]
    loc: eqx.AbstractVar[jax.Array]
    scale: eqx.AbstractVar[jax.Array]
    noise_range: eqx.AbstractVar[tuple[float, float]]
    uses_network: eqx.AbstractVar[bool]
    reach: eqx.AbstractVar[float | None]
    conditioning: eqx.AbstractVar[Conditioning | None]
    bound: eqx.AbstractVar[jax.Array | None]

    @property
    def condition_shape(self) -> tuple[int, ...] | None:
        """Shape of the condition that is to be given; None where there is none."""
        if self.conditioning is None or self.bound is not None:
            return None
        return tuple(self.conditioning.loc.shape)

    def given(self, condition: Any) -> Self:
        """The density p(x | c) at one value of the condition: a model of ``x`` alone.

        Args:
            condition: of ``condition_shape``; it may be traced and differentiated.

        Raises:
            TypeError: for anything but numbers.
            ValueError: for another shape, values that are not finite, or a model that
                has no condition (any more).
        """
        shape = self.condition_shape
        if shape is None or self.conditioning is None:
            why = "was learned without" if self.bound is None else "is already bound to"
            raise ValueError(
                f"`given` must be called on a conditional model; this one {why} a "
                "condition. Learn one with `rtk.fit(key, samples, condition=...)`."
            )
        condition = as_condition("condition", condition)
        if condition.shape != shape:
            raise ValueError(
                f"`condition` must have shape {shape}; got {condition.shape}. For many "
                "at once use `jax.vmap`, or `rtk.LearnedPrior(model_, condition=...)`."
            )
        return dataclasses.replace(
            self, bound=self.conditioning.standardised(condition)
        )

    def sample_base(
        self, key: jax.Array, sample_shape: tuple[int, ...] = ()
    ) -> jax.Array:
        """Independent draws of the base at the smallest noise, on the data's scale.

        They are exact draws of the density itself where ``uses_network`` is False.

        Args:
            key: PRNG key.
            sample_shape: of the draws, ``sample_shape + event_shape`` in all.
        """
        t = time_from_noise_to_signal(jnp.asarray(self.noise_range[0]))
        keys = jr.split(key, math.prod(sample_shape))
        z = jax.vmap(self.base.sample, in_axes=(0, None))(keys, t)
        if self.conditioning is not None:
            z = z + jnp.exp(-t) * self.conditioning.mean(self._condition())
        return self.loc + self.scale * z.reshape((*sample_shape, *self.loc.shape))

    def check(self) -> None:
        """Raise unless every number in the model is one that it can be drawn with.

        Raises:
            TypeError: for attributes that are no numbers.
            ValueError: for weights that are not finite, variances and scales that are
                not positive, and parts that do not go together.
        """
        low, high = self.noise_range
        for value in (low, high):
            check_positive("noise_range", value)
        if low >= high:
            raise ValueError(f"`noise_range` must increase; got {self.noise_range}.")
        if self.reach is not None:
            check_positive("reach", self.reach)
        if not isinstance(self.uses_network, bool):
            raise TypeError(
                f"`uses_network` must be True or False; got {self.uses_network!r}."
            )
        check_finite_values("loc", self.loc)
        check_positive_values("scale", self.scale)
        self.base.check("base")
        for path, leaf in jax.tree_util.tree_leaves_with_path(self.network):
            if eqx.is_array(leaf):
                check_finite_values(f"network{jax.tree_util.keystr(path)}", leaf)
        theirs = getattr(self.network, "condition_shape", None)
        if theirs != self.condition_shape:
            raise ValueError(
                "`network` must be made for the condition of the model, of shape "
                f"{self.condition_shape}; got one for {theirs}."
            )
        if self.conditioning is not None:
            self.conditioning.check("conditioning")
            is_mixture = isinstance(self.base, NoisedMixture)
            if not is_mixture or len(self.base.log_weights) > 1:
                raise ValueError(
                    "`base` must be one Gaussian where there is a condition; got a "
                    "mixture or a product of mixtures."
                )

    def _residual(self, z: jax.Array, t: jax.Array) -> jax.Array:
        """What the base is of, flat: ``z`` less the noised mean of the regression."""
        if self.conditioning is None:
            return jnp.ravel(z)
        mean = self.conditioning.mean(self._condition())
        return jnp.ravel(z) - jnp.exp(-t) * mean

    def _correction(self, z: jax.Array, t: jax.Array, log_r: jax.Array) -> jax.Array:
        """The network's, at ``z`` (event_shape).

        Of p(x | c) it sees the residual, at unit variance for every noise: a density
        that only moves with ``c`` then looks the same for all ``c``, and a precise
        condition does not push it below the network's resolution.
        """
        if not self.uses_network:
            return jnp.zeros((), z.dtype)
        if self.conditioning is None:
            return self.network(self._within_reach(z), log_r)
        spread = jnp.sqrt(jnp.square(self.base.axes) @ self.base.variances_at(t)[0])
        residual = (self._residual(z, t) / spread).reshape(z.shape)
        return self.network(self._within_reach(residual), log_r, self._condition())

    def _within_reach(self, z: jax.Array) -> jax.Array:
        """``z``, its root mean square kept below the model's reach, if it has one.

        One factor for all coordinates: whatever symmetry a network has, it stays.
        """
        if self.reach is None:
            return z
        return z * jax.lax.rsqrt(1.0 + jnp.mean(jnp.square(z)) / self.reach**2)

    def _condition(self) -> jax.Array:
        if self.bound is None:
            raise ValueError(
                "A density p(x | c) must be given its condition first. Write "
                "`model_.given(c)`, or `rtk.LearnedPrior(model_, condition=c)`."
            )
        return self.bound


def as_condition(name: str, condition: Any) -> jax.Array:
    """A condition as an array of floating point numbers.

    Raises:
        TypeError: for anything but numbers (integers and booleans become floating).
        ValueError: for values that are not finite, where they are known.
    """
    message = f"`{name}` must be an array of numbers; got {{}}."
    # a string would be taken for the name of a type
    if any(isinstance(leaf, str | bytes) for leaf in jax.tree.leaves(condition)):
        raise TypeError(message.format(repr(condition)[:60]))
    try:
        array = jnp.asarray(condition)
    except (TypeError, ValueError):
        raise TypeError(message.format(type(condition).__name__)) from None
    if not jnp.issubdtype(array.dtype, jnp.floating):
        if not jnp.issubdtype(array.dtype, np.integer) and array.dtype != bool:
            raise TypeError(message.format(f"type {array.dtype}"))
        array = array.astype(jnp.result_type(float))
    if not isinstance(array, Tracer):
        num_bad = int(np.sum(~np.isfinite(np.asarray(array))))
        if num_bad:
            raise ValueError(
                f"`{name}` must be finite; got {num_bad} NaN or infinite values."
            )
    return array


def fit_conditioning(
    z: np.ndarray, condition: np.ndarray
) -> tuple[Conditioning, np.ndarray]:
    r"""Ridge regression of standardised data on their condition, in float32.

    The penalty is ``condition_dim / n`` times the condition's variance: invisible where
    rows are many, and enough where entries of the condition depend on each other.

    Args:
        z: standardised data, ``(n, dim)``, float64.
        condition: ``(n, *condition_shape)``, float64.

    Returns:
        The conditioning, and the residuals ``z - B c``, ``(n, dim)``.

    Raises:
        ValueError: where the condition determines a coordinate of the data.
    """
    loc, scale = condition.mean(axis=0), condition.std(axis=0)
    c = ((condition - loc) / scale).reshape(len(condition), -1)
    num, dim = c.shape
    covariance = c.T @ c / num + dim / num * np.eye(dim)
    weights = np.linalg.solve(covariance, c.T @ z / num).T
    residual = z - c @ weights.T
    if num > 2 * dim:
        _check_undetermined(z, c)
    arrays = (jnp.asarray(a, jnp.float32) for a in (loc, scale, weights))
    return Conditioning(*arrays), residual


def _check_undetermined(z: np.ndarray, c: np.ndarray) -> None:
    left = z - c @ np.linalg.lstsq(c, z, rcond=None)[0]
    determined = np.flatnonzero(left.std(axis=0) < 1e-3 * z.std(axis=0))
    if determined.size:
        raise ValueError(
            "`samples` must not be a linear function of `condition`: given that, they "
            f"have no density; got {determined.size} such coordinates, the first at "
            f"flat index {determined[0]}. Drop these coordinates."
        )
