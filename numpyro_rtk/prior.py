# pyright: reportIncompatibleMethodOverride=false
# pyright: reportIncompatibleVariableOverride=false
"""The learned prior as a NumPyro distribution."""

import math
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import numpyro.distributions as dist
from numpyro.distributions import constraints
from numpyro.util import is_prng_key, not_jax_tracer

from numpyro_rtk import paths
from numpyro_rtk.core.annealed import Plan, predict_down
from numpyro_rtk.core.mala import mala
from numpyro_rtk.core.multistep import multistep_between
from numpyro_rtk.core.uld import uld
from numpyro_rtk.noise import angle_ladder

__all__ = ["LearnedPrior", "check_density"]

# What `sample` runs: the unconditional default of RTKMALA without its adaptation.
_NUM_SEGMENTS = 25
_NUM_STEPS = (4, 3, *(0,) * (_NUM_SEGMENTS - 2))
_STEP_SIZE = 0.6


def check_density(name: str, density: Any) -> None:
    """Raise unless ``density`` has what the package needs of one.

    Args:
        name: the argument's name, for the message.
        density: anything with ``event_shape`` and ``score(x, t)``.
    """
    missing = [a for a in ("event_shape", "score") if not hasattr(density, a)]
    if missing:
        raise TypeError(
            f"`{name}` must be an object with `event_shape` and `score(x, t)` (an "
            "EnergyModel, a ScoreModel, a GaussianMixture or your own); got "
            f"{type(density).__name__} without {missing}. Train one with `rtk.fit`."
        )


class LearnedPrior(dist.Distribution):
    """A density learned from samples, as a NumPyro distribution.

    >>> prior = LearnedPrior(model)                      # doctest: +SKIP
    >>> x = numpyro.sample("x", prior)                   # doctest: +SKIP

    ``log_prob`` is the density's normalised log density at noise zero and differentiable,
    so NUTS and every other NumPyro algorithm can be used with it; the posterior is that
    under the *learned* density. ``sample`` draws by an annealed run of reverse transition
    kernels (exactly where the density has a ``sample`` of its own): close to the density,
    not exact. ``expand``, ``mask``, ``to_event`` and plates work as for any distribution.

    Args:
        density: an :class:`~numpyro_rtk.EnergyModel`, a
            :class:`~numpyro_rtk.GaussianMixture`, or any object with ``event_shape``,
            ``score(x, t)`` and ``log_density(x, t)``. Without ``log_density`` (a
            :class:`~numpyro_rtk.ScoreModel`) the prior can only be sampled and used with
            ``RTKULD``.
        validate_args: as in NumPyro.

    Raises:
        TypeError: when ``density`` is not such an object.
    """

    arg_constraints = {}
    pytree_data_fields = ("_arrays",)
    pytree_aux_fields = ("_static",)

    def __init__(self, density: Any, *, validate_args: bool | None = None):
        check_density("density", density)
        # Held in two halves so that the distribution crosses jit, vmap and lax.cond.
        self._arrays, self._static = eqx.partition(density, eqx.is_array)
        super().__init__((), tuple(density.event_shape), validate_args=validate_args)

    @property
    def density(self) -> Any:
        """The density that the prior was built from."""
        return eqx.combine(self._arrays, self._static)

    @property
    def support(self) -> constraints.Constraint:
        """All of the real space of the event's shape."""
        return constraints.independent(constraints.real, len(self.event_shape))

    def log_prob(self, value: jax.Array) -> jax.Array:
        """Normalised log density of ``value``, ``batch + event_shape`` -> ``batch``."""
        density = self.density
        if not paths.has_energy(density):
            raise TypeError(
                f"`log_prob` needs an energy, and {type(density).__name__} has a score "
                "only: without a normalised density no Metropolis test, NUTS included, is "
                "valid. Train an EnergyModel (`rtk.fit` without `network`), or use "
                "`rtk.RTKULD(model)`, whose draws are approximate."
            )
        value = jnp.asarray(value)
        rank = len(self.event_shape)
        if value.shape[value.ndim - rank :] != self.event_shape or value.ndim < rank:
            raise ValueError(
                f"`value` must have shape batch + {self.event_shape}; got {value.shape}."
            )
        batch = value.shape[: value.ndim - rank]
        if isinstance(density, eqx.Module):
            return density.log_density(value, 0.0)  # pyright: ignore
        flat = value.reshape((-1, *self.event_shape))
        # a user's own object is asked for one event at a time
        return jax.vmap(lambda x: density.log_density(x, 0.0))(flat).reshape(batch)

    def sample(self, key: jax.Array, sample_shape: tuple[int, ...] = ()) -> jax.Array:
        """Draws of shape ``sample_shape + event_shape``; see the class for how close."""
        if not is_prng_key(key):
            raise TypeError(f"`key` must be a PRNG key; got {key!r}.")
        density = self.density
        if hasattr(density, "sample"):
            return density.sample(key, sample_shape)
        dim = math.prod(self.event_shape)
        base, plan = self._plan()
        multistep = multistep_between(plan.levels.t)
        inner = mala() if paths.has_energy(density) else uld()

        def draw(key):
            key_top, key_down = jr.split(key)
            top = jr.normal(key_top, (dim,), plan.step_size.dtype)
            path = paths.prior_path(base)
            return predict_down(
                key_down, top, path, plan, multistep, inner, _NUM_STEPS
            ).position

        keys = jr.split(key, math.prod(sample_shape))
        flat = jax.vmap(draw)(keys)
        loc, scale = paths.loc_and_scale(density)
        draws = loc + scale * flat.reshape((-1, *self.event_shape))
        return draws.reshape((*sample_shape, *self.event_shape))

    def _plan(self) -> tuple[paths.BaseFn, Plan]:
        base = paths.standardised(self.density)
        times = angle_ladder(_NUM_SEGMENTS)
        moment = self.__dict__.get("_second_moment")
        if moment is None:
            # The same fixed key each time: under vmap the calibration is done once.
            dim = math.prod(self.event_shape)
            calibrate = jax.jit(lambda key: paths.calibrate(key, base, times, dim))
            moment = calibrate(jr.key(0))
            if not_jax_tracer(moment):
                self._second_moment = np.asarray(moment)
        segments, scale = paths.plan_segments(times, jnp.asarray(moment))
        step_size = jnp.full(_NUM_SEGMENTS, _STEP_SIZE, scale.dtype)
        return base, Plan(paths.levels_of(times, 1.0), segments, step_size, scale)
