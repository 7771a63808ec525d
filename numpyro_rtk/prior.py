# pyright: reportIncompatibleMethodOverride=false
# pyright: reportIncompatibleVariableOverride=false
"""The learned prior as a NumPyro distribution."""

import copy
import math
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpyro.distributions as dist
from numpyro.distributions import biject_to, constraints
from numpyro.distributions.batch_util import promote_batch_shape
from numpyro.util import is_prng_key

from numpyro_rtk.density import (
    ConditionalDensity,
    Density,
    check_conditional,
    check_density,
    check_resolved,
    condition_shape_of,
    has_energy,
)
from numpyro_rtk.draw import draw, draw_given
from numpyro_rtk.networks.condition import as_condition
from numpyro_rtk.networks.site import REAL
from numpyro_rtk.sites import constraint_of, sites_of, support_spec

__all__ = ["LearnedPrior"]


class LearnedPrior(dist.Distribution):
    """A density learned from samples, as a NumPyro distribution.

    >>> prior = LearnedPrior(model)                      # doctest: +SKIP
    >>> x = numpyro.sample("x", prior)                   # doctest: +SKIP

    ``log_prob`` is the density's normalised log density at noise zero and differentiable,
    so NUTS and every other NumPyro algorithm can be used with it; the posterior is that
    under the *learned* density. ``sample`` draws by an annealed run of reverse transition
    kernels: close to the density, not exact; but exactly where the density has a
    ``sample`` of its own, or is a model that ``fit`` left at its base. ``expand``,
    ``mask``, ``to_event`` and plates work as for any distribution.

    Where the density was learned of constrained values (``rtk.fit(..., support=...)``), or
    ``support`` is given, the prior lives on that support: the density is of the
    unconstrained values, and ``log_prob`` has the Jacobian of NumPyro's own bijection.

    A model learned of several named sites is one vector of unconstrained values here;
    :func:`numpyro_rtk.learned_sites` gives its sites by name.

    A density p(x | c), learned by ``rtk.fit(..., condition=c)``, takes ``condition=``:
    data, or other sites of the model, and every kernel follows the gradient through it.

    >>> mass = numpyro.sample("mass", dist.LogNormal())  # doctest: +SKIP
    >>> x = numpyro.sample("x", LearnedPrior(model, condition=mass))  # doctest: +SKIP

    Args:
        density: an :class:`~numpyro_rtk.EnergyModel`, a
            :class:`~numpyro_rtk.GaussianMixture`, or any object with ``event_shape``,
            ``score(x, t)`` and ``log_density(x, t)``. Without ``log_density`` (a
            :class:`~numpyro_rtk.ScoreModel`) the prior can only be sampled and used with
            ``RTKULD``. Of p(x | c): a conditional model, or any object with
            ``event_shape``, ``condition_shape`` and ``given(c)``, which returns such a
            density; its ``loc`` and ``scale``, if any, are the same for all ``c``.
        condition: the value of c, ``batch_shape + condition_shape``, where the density
            is conditional; its leading axes are independent entries (a plate).
        support: a NumPyro constraint, where the density does not bring its own.
        validate_args: as in NumPyro.

    Raises:
        TypeError: when ``density`` is not such an object, ``support`` no constraint, or
            ``condition`` not numbers.
        ValueError: when the density brings a support of its own and another is given;
            when its ``loc`` is so large that floating point numbers do not resolve its
            ``scale`` (a warning where they hardly do);
            when ``condition`` is missing, too much, of another shape, or not finite.
    """

    arg_constraints = {}
    pytree_data_fields = ("_arrays", "_condition")
    pytree_aux_fields = ("_static", "_spec", "_ranks")

    def __init__(
        self,
        density: Density | ConditionalDensity,
        *,
        condition: Any = None,
        support: constraints.Constraint | None = None,
        validate_args: bool | None = None,
    ):
        self._condition = _condition_of(density, condition)
        check_resolved("density", density)
        # Held in two halves so that the distribution crosses jit, vmap and lax.cond.
        self._arrays, self._static = eqx.partition(density, eqx.is_array)
        self._spec = _support_of(density, support)
        leaves = jax.tree.leaves((self._arrays, self._condition))
        self._ranks = tuple(map(jnp.ndim, leaves))
        shape = tuple(density.event_shape)
        if self._spec is not None:
            shape = biject_to(constraint_of(self._spec)).forward_shape(shape)
        batch_shape, _ = self._condition_shapes()
        super().__init__(batch_shape, shape, validate_args=validate_args)

    @property
    def density(self) -> Any:
        """The density that the prior was built from, of unconstrained values."""
        return eqx.combine(self._arrays, self._static)

    @property
    def condition(self) -> jax.Array | None:
        """Of a density p(x | c), ``batch_shape + condition_shape``; None otherwise."""
        return self._condition

    @property
    def has_energy(self) -> bool:
        """Whether there is a ``log_prob``, not draws alone."""
        return has_energy(self._one_density())

    @property
    def _stack(self) -> tuple[int, ...]:
        """Leading axes that every array has gained: priors stacked by scan or vmap."""
        leaves = jax.tree.leaves((self._arrays, self._condition))
        for leaf, rank in zip(leaves, self._ranks, strict=True):
            return jnp.shape(leaf)[: jnp.ndim(leaf) - rank]
        return ()

    @property
    def is_stacked(self) -> bool:
        """Whether it is several priors in one, as after NumPyro's ``scan``."""
        return bool(self._stack)

    @property
    def first(self) -> "LearnedPrior":
        """The first prior of a stack; itself where it is one."""
        index = (0,) * len(self._stack)
        return jax.tree.map(lambda leaf: leaf[index], self) if index else self

    def _condition_shapes(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Batch shape and shape of one condition."""
        if self._condition is None:
            return (), ()
        rank = len(self.density.condition_shape)
        shape = jnp.shape(self._condition)[len(self._stack) :]
        return shape[: len(shape) - rank], shape[len(shape) - rank :]

    def _one_density(self) -> Density:
        """The density, of p(x | c) at the first of the conditions."""
        one = self.first
        if one.condition is None:
            return one.density
        _, shape = one._condition_shapes()
        return one.density.given(jnp.reshape(one.condition, (-1, *shape))[0])

    def each(self, batch: tuple[int, ...]) -> "LearnedPrior":
        """One prior for each entry of ``batch``, stacked along one axis.

        For the steps of a ``scan``, which may differ in everything that is an array.
        """
        stack, (own, _) = self._stack, self._condition_shapes()
        size = math.prod(batch)

        def spread(leaf, rank, axes):
            tail = jnp.shape(leaf)[rank:]
            leaf = jnp.reshape(leaf, (*jnp.shape(leaf)[:rank], *axes, *tail))
            return jnp.broadcast_to(leaf, (*batch, *tail)).reshape((size, *tail))

        new = copy.copy(self)
        ones = (1,) * len(own)
        new._arrays = jax.tree.map(lambda x: spread(x, len(stack), ones), self._arrays)
        if self._condition is not None:
            new._condition = spread(self._condition, len(stack) + len(own), ())
        leaves = jax.tree.leaves((new._arrays, new._condition))
        new._ranks = tuple(jnp.ndim(leaf) - 1 for leaf in leaves)
        new._batch_shape = (size,)
        return new

    @property
    def support(self) -> constraints.Constraint:
        """Where the prior lives; by default all of the real space."""
        base = constraints.real if self._spec is None else constraint_of(self._spec)
        return constraints.independent(base, len(self.event_shape) - base.event_dim)

    def log_prob(self, value: jax.Array) -> jax.Array:
        """Normalised log density of ``value``, ``batch + event_shape`` -> ``batch``."""
        if not self.has_energy:
            density = self._one_density()
            raise TypeError(
                f"`log_prob` needs an energy, and {type(density).__name__} has a score "
                "only: without a normalised density no Metropolis test, NUTS included, is "
                "valid. Make it an energy (`rtk.distill`; from samples `rtk.fit` without "
                "`network`), or use `rtk.RTKParticleGibbs(model)`, for which a score "
                "suffices."
            )
        value = jnp.asarray(value)
        rank = len(self.event_shape)
        if value.shape[value.ndim - rank :] != self.event_shape or value.ndim < rank:
            raise ValueError(
                f"`value` must have shape batch + {self.event_shape}; got {value.shape}."
            )
        if self._stack:
            return _log_prob_of_stack(self, value)
        if self._spec is None:
            return self._log_density(value)
        transform = biject_to(self.support)
        free = transform.inv(value)
        return self._log_density(free) - transform.log_abs_det_jacobian(free, value)

    def _log_density(self, free: jax.Array) -> jax.Array:
        """Of unconstrained values, ``batch + density.event_shape`` -> ``batch``."""
        shape = tuple(self.density.event_shape)
        batch = free.shape[: free.ndim - len(shape)]
        batch_shape, condition_shape = self._condition_shapes()
        if batch_shape:
            batch = jnp.broadcast_shapes(batch, batch_shape)
            return self._log_densities(free, (*batch, *condition_shape))
        density = self._one_density()
        assert has_energy(density)
        # one event at a time, which is all that a density promises
        one = lambda x: density.log_density(x, 0.0)
        for _ in batch:
            one = jax.vmap(one)
        return one(free)

    def _log_densities(self, free: jax.Array, shape: tuple[int, ...]) -> jax.Array:
        """The same at conditions broadcast to this shape, one for each entry."""
        density = self.density
        event_shape = tuple(density.event_shape)
        condition_shape = tuple(density.condition_shape)
        batch = shape[: len(shape) - len(condition_shape)]
        x = jnp.broadcast_to(free, (*batch, *event_shape)).reshape((-1, *event_shape))
        c = jnp.broadcast_to(jnp.asarray(self._condition), shape)
        one = lambda x, c: density.given(c).log_density(x, 0.0)
        return jax.vmap(one)(x, c.reshape((-1, *condition_shape))).reshape(batch)

    def sample(self, key: jax.Array, sample_shape: tuple[int, ...] = ()) -> jax.Array:
        """Draws, ``sample_shape + batch_shape + event_shape``; the class says how close."""
        if not is_prng_key(key):
            raise TypeError(f"`key` must be a PRNG key; got {key!r}.")
        if self._stack:
            return _sample_stack(self, key, sample_shape)
        draws = self._sample_free(key, sample_shape)
        return draws if self._spec is None else biject_to(self.support)(draws)

    def _sample_free(self, key: jax.Array, sample_shape: tuple[int, ...]) -> jax.Array:
        """Unconstrained draws, each entry of the batch at its own condition."""
        density = self.density
        if self._condition is None:
            return draw(key, density, sample_shape)
        batch, shape = self._condition_shapes()
        c = jnp.reshape(self._condition, (-1, *shape))
        draws = jnp.moveaxis(
            draw_given(key, density, c, sample_shape), 0, len(sample_shape)
        )
        return draws.reshape((*sample_shape, *batch, *density.event_shape))


def _log_prob_of_stack(prior: LearnedPrior, value: jax.Array) -> jax.Array:
    """Each prior of a stack at its own entry of ``value``; axes broadcast."""
    stack, (batch, _) = prior._stack, prior._condition_shapes()
    missing = len(stack) + len(batch) + len(prior.event_shape) - value.ndim
    if missing < 0:
        return jax.vmap(prior.log_prob)(value)
    value = value.reshape((1,) * missing + value.shape)
    if 1 not in (stack[0], value.shape[0]) and stack[0] != value.shape[0]:
        raise ValueError(
            f"`value` must have a shape that broadcasts with the {stack} stacked priors; "
            f"got {value.shape}."
        )
    both = lambda prior, value: prior.log_prob(value)
    if stack[0] == value.shape[0]:
        return jax.vmap(both)(prior, value)
    if stack[0] == 1:
        one = jax.tree.map(lambda leaf: leaf[0], prior)
        return jax.vmap(both, in_axes=(None, 0))(one, value)
    return jax.vmap(both, in_axes=(0, None))(prior, value[0])


def _sample_stack(prior: LearnedPrior, key: jax.Array, shape: tuple) -> jax.Array:
    """Draws of each prior of a stack, ``shape + stack + batch_shape + event_shape``."""
    stack = prior._stack
    size = math.prod(stack)
    merge = lambda leaf: leaf.reshape((size, *leaf.shape[len(stack) :]))
    one = lambda key, prior: prior.sample(key, shape)
    draws = jax.vmap(one)(jr.split(key, size), jax.tree.map(merge, prior))
    draws = jnp.moveaxis(draws, 0, len(shape))
    return draws.reshape((*shape, *stack, *draws.shape[len(shape) + 1 :]))


@promote_batch_shape.register(LearnedPrior)  # pyright: ignore[reportArgumentType]
def _promote_stack(prior: LearnedPrior) -> LearnedPrior:
    """What NumPyro's ``scan`` asks of its steps' distributions: the stack is a batch."""
    new = copy.copy(prior)
    new._batch_shape = (*prior._stack, *prior._condition_shapes()[0])
    return new


def _condition_of(
    density: Density | ConditionalDensity, condition: Any
) -> jax.Array | None:
    """The condition, checked against the density; None where it has none."""
    own = condition_shape_of(density)
    if condition is None:
        if own is not None:
            raise ValueError(
                "`condition` must be given for a density p(x | c), with a shape that "
                f"ends in {own}; got None. Write `rtk.LearnedPrior(model_, "
                "condition=c)`."
            )
        check_density("density", density)
        return None
    own = check_conditional("density", density)
    condition = as_condition("condition", condition)
    if condition.shape[condition.ndim - len(own) :] != own or condition.ndim < len(own):
        raise ValueError(
            f"`condition` must have a shape that ends in {own}, the density's "
            f"condition shape; got {condition.shape}."
        )
    return condition


def _support_of(density: Any, support: Any) -> tuple[Any, ...] | None:
    """The support as plain data; None for all of the real space."""
    given = None if support is None else support_spec("support", support)
    sites = sites_of(density)
    if sites is not None:
        own = sites[0].support if sites[0].name is None else REAL
        if given not in (None, own):
            raise ValueError(
                f"`support` must not be given: the density was learned on {own[0]}; got "
                f"{given[0]}."
            )
        given = own
    return None if given == REAL else given
