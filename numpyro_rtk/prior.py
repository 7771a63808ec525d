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
import numpyro
import numpyro.distributions as dist
from numpyro.distributions import biject_to, constraints
from numpyro.util import is_prng_key, not_jax_tracer

from numpyro_rtk import paths
from numpyro_rtk.core.annealed import Plan, predict_down
from numpyro_rtk.core.mala import mala
from numpyro_rtk.core.multistep import multistep_between
from numpyro_rtk.core.uld import uld
from numpyro_rtk.networks.site import REAL
from numpyro_rtk.noise import angle_ladder
from numpyro_rtk.sites import constraint_of, split_sites, support_spec

__all__ = ["LearnedPrior", "check_density", "learned_sites"]

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

    Where the density was learned of constrained values (``rtk.fit(..., support=...)``), or
    ``support`` is given, the prior lives on that support: the density is of the
    unconstrained values, and ``log_prob`` has the Jacobian of NumPyro's own bijection.

    A model learned of several named sites is one vector of unconstrained values here;
    :func:`numpyro_rtk.learned_sites` gives its sites by name.

    Args:
        density: an :class:`~numpyro_rtk.EnergyModel`, a
            :class:`~numpyro_rtk.GaussianMixture`, or any object with ``event_shape``,
            ``score(x, t)`` and ``log_density(x, t)``. Without ``log_density`` (a
            :class:`~numpyro_rtk.ScoreModel`) the prior can only be sampled and used with
            ``RTKULD``.
        support: a NumPyro constraint, where the density does not bring its own.
        validate_args: as in NumPyro.

    Raises:
        TypeError: when ``density`` is not such an object, or ``support`` no constraint.
        ValueError: when the density brings a support of its own and another is given.
    """

    arg_constraints = {}
    pytree_data_fields = ("_arrays",)
    pytree_aux_fields = ("_static", "_spec")

    def __init__(
        self,
        density: Any,
        *,
        support: constraints.Constraint | None = None,
        validate_args: bool | None = None,
    ):
        check_density("density", density)
        # Held in two halves so that the distribution crosses jit, vmap and lax.cond.
        self._arrays, self._static = eqx.partition(density, eqx.is_array)
        self._spec = _support_of(density, support)
        shape = tuple(density.event_shape)
        if self._spec is not None:
            shape = biject_to(constraint_of(self._spec)).forward_shape(shape)
        super().__init__((), shape, validate_args=validate_args)

    @property
    def density(self) -> Any:
        """The density that the prior was built from, of unconstrained values."""
        return eqx.combine(self._arrays, self._static)

    @property
    def support(self) -> constraints.Constraint:
        """Where the prior lives; by default all of the real space."""
        base = constraints.real if self._spec is None else constraint_of(self._spec)
        return constraints.independent(base, len(self.event_shape) - base.event_dim)

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
        if self._spec is None:
            return self._log_density(value)
        transform = biject_to(self.support)
        free = transform.inv(value)
        return self._log_density(free) - transform.log_abs_det_jacobian(free, value)

    def _log_density(self, free: jax.Array) -> jax.Array:
        """Of unconstrained values, ``batch + density.event_shape`` -> ``batch``."""
        density = self.density
        if isinstance(density, eqx.Module):
            return density.log_density(free, 0.0)  # pyright: ignore
        shape = tuple(density.event_shape)
        batch = free.shape[: free.ndim - len(shape)]
        # a user's own object is asked for one event at a time
        one = lambda x: density.log_density(x, 0.0)
        return jax.vmap(one)(free.reshape((-1, *shape))).reshape(batch)

    def sample(self, key: jax.Array, sample_shape: tuple[int, ...] = ()) -> jax.Array:
        """Draws of shape ``sample_shape + event_shape``; see the class for how close."""
        if not is_prng_key(key):
            raise TypeError(f"`key` must be a PRNG key; got {key!r}.")
        draws = self._sample_free(key, sample_shape)
        return draws if self._spec is None else biject_to(self.support)(draws)

    def _sample_free(self, key: jax.Array, sample_shape: tuple[int, ...]) -> jax.Array:
        """Unconstrained draws, ``sample_shape + density.event_shape``."""
        density = self.density
        if hasattr(density, "sample"):
            return density.sample(key, sample_shape)
        shape = tuple(density.event_shape)
        base, plan = self._plan()
        multistep = multistep_between(plan.levels.t)
        inner = mala() if paths.has_energy(density) else uld()

        def draw(key):
            key_top, key_down = jr.split(key)
            top = jr.normal(key_top, (math.prod(shape),), plan.step_size.dtype)
            path = paths.prior_path(base)
            return predict_down(
                key_down, top, path, plan, multistep, inner, _NUM_STEPS
            ).position

        keys = jr.split(key, math.prod(sample_shape))
        flat = jax.vmap(draw)(keys)
        loc, scale = paths.loc_and_scale(density)
        return (loc + scale * flat.reshape((-1, *shape))).reshape(
            (*sample_shape, *shape)
        )

    def _plan(self) -> tuple[paths.BaseFn, Plan]:
        base = paths.standardised(self.density)
        times = angle_ladder(_NUM_SEGMENTS)
        moment = self.__dict__.get("_second_moment")
        if moment is None:
            # The same fixed key each time: under vmap the calibration is done once.
            dim = math.prod(self.density.event_shape)
            calibrate = jax.jit(lambda key: paths.calibrate(key, base, times, dim))
            moment = calibrate(jr.key(0))
            if not_jax_tracer(moment):
                self._second_moment = np.asarray(moment)
        segments, scale = paths.plan_segments(times, jnp.asarray(moment))
        step_size = jnp.full(_NUM_SEGMENTS, _STEP_SIZE, scale.dtype)
        return base, Plan(paths.levels_of(times, 1.0), segments, step_size, scale)


def _support_of(density: Any, support: Any) -> tuple[Any, ...] | None:
    """The support as plain data; None for all of the real space."""
    given = None if support is None else support_spec("support", support)
    sites = getattr(density, "sites", None)
    if sites is not None:
        own = sites[0].support if sites[0].name is None else REAL
        if given not in (None, own):
            raise ValueError(
                f"`support` must not be given: the density was learned on {own[0]}; got "
                f"{given[0]}."
            )
        given = own
    return None if given == REAL else given


def learned_sites(name: str, prior: LearnedPrior) -> dict[str, jax.Array]:
    """All sites of a prior that was learned of several, inside a model, by name.

    >>> model_, _ = rtk.fit(key, yesterday)                      # doctest: +SKIP
    >>> sites = rtk.learned_sites("prior", rtk.LearnedPrior(model_))   # doctest: +SKIP
    >>> mu, tau = sites["mu"], sites["tau"]                      # doctest: +SKIP

    One latent site ``name`` holds the unconstrained vector that the joint density is of;
    every named site is recorded as a deterministic one, constrained.

    Args:
        name: of the latent site.
        prior: of a model that ``rtk.fit`` learned from a dict, an ``MCMC`` object,
            InferenceData or a DataTree.

    Returns:
        Constrained value of each site.

    Raises:
        TypeError: when ``prior`` is not a ``LearnedPrior``.
        ValueError: when it was learned of one unnamed array.
    """
    if not isinstance(prior, LearnedPrior):
        raise TypeError(
            f"`prior` must be a LearnedPrior; got {type(prior).__name__}. Write "
            "`rtk.LearnedPrior(model_)`."
        )
    sites = getattr(prior.density, "sites", None)
    if sites is None or sites[0].name is None:
        raise ValueError(
            "`prior` must be learned of named sites (`rtk.fit` on a dict); got one of an "
            f'array. Write `numpyro.sample("{name}", prior)`.'
        )
    values = split_sites(sites, jnp.asarray(numpyro.sample(name, prior)))
    return {n: jnp.asarray(numpyro.deterministic(n, v)) for n, v in values.items()}
