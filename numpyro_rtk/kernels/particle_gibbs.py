# pyright: reportIncompatibleMethodOverride=false
"""RTKParticleGibbs: conditional sequential Monte Carlo down the ladder, by scores alone."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from numpyro.util import is_prng_key

from numpyro_rtk._checks import check_positive, check_positive_int
from numpyro_rtk.core.inner import accept
from numpyro_rtk.core.particle_plan import ParticlePlan
from numpyro_rtk.core.particles import (
    Sweep,
    SweepNoise,
    Target,
    noised,
    sweep,
)
from numpyro_rtk.core.twist import Sharpness, even_sharpness, sharpness_at
from numpyro_rtk.core.warmup.adapt import Frame, followed, no_draws
from numpyro_rtk.core.warmup.particles import (
    NUM_CHOICE_RUNS,
    NUM_RUNS,
    choose_sharpness,
    first_path,
    law_gap,
    plan_at,
)
from numpyro_rtk.core.warmup.prior_spread import PriorSpread
from numpyro_rtk.density import value_and_grad
from numpyro_rtk.kernels.base import PathKernel
from numpyro_rtk.kernels.particle_spread import num_spread_evals, spread_of
from numpyro_rtk.kernels.particle_state import ParticleAdaptState, ParticleState
from numpyro_rtk.kernels.problem.bound import Bound
from numpyro_rtk.noise import Ladder, as_levels

__all__ = ["RTKParticleGibbs"]

_NUM_PARTICLES = 64
# By whether the prior has an energy: without one the law of the draws hangs on the levels,
# and 32 of them have drawn mode weights that were off by .025 in 20 dimensions.
_NUM_LEVELS = {True: 32, False: 64}
# Beyond this many dimensions matrices would cost more than they gain; see `dense`.
_LARGEST_DENSE = 256
# The key that levels and c are chosen with.
_LAW = 18


class RTKParticleGibbs(PathKernel):
    r"""Particle Gibbs down the noise ladder: the kernel for a score network.

    **What the draws are.** *Exact*, for any number of particles, of the posterior under

    - the learned density itself, where it has an energy;
    - with a score alone, the law that the network draws by its own Gaussian reverse
      kernels on this ladder. It nears the learned density as ``num_levels`` grows.

    Every draw launches fresh particles from the noise, so that other modes are found. With
    too few of them draws stay where they are (see ``accept_prob``), or change mode rarely;
    the smallest effective sample size along the ladder, ``sample_size``, says how close
    that is.

    In a plate whose rows are independent each row has particles' weights of its own: a
    thousand of them mix as one does. Rows are independent where every latent site stands
    in the plate and every term of the model is computed from one row's values (proved on
    the model's own program; where in doubt, all rows are one). With sites that rows share
    take NumPyro's ``Gibbs``, and these sites by NUTS.

    ``log_evidence`` of a draw is the log of :math:`\hat Z`, whose *inverse* is an unbiased
    estimate of the evidence's inverse in a stationary chain.

    Args:
        model: see :class:`RTKMALA`.
        score: see :class:`RTKMALA`; a :class:`~numpyro_rtk.ScoreModel` suffices.
        num_particles: n; a draw costs ``n num_levels`` evaluations of the network.
        num_levels: K, noise levels. None: 64 with a score alone, 32 with an energy, which
            says what the draws' law is on any ladder.
        ladder: as for :class:`RTKMALA`; by default ``"angle"``, on which the law that a
            network draws is nearest to its own, with a fifth of its levels at smaller noise
            for a likelihood more precise than its first one.
        likelihood_variance: c, the variance of the likelihood on the standardised scale
            that the particles' look ahead assumes, in all directions. None: the look ahead
            is chosen before the first draw, by the model and its data, not by the key: with
            the likelihood's curvature, where it has a second derivative and particles that
            come down so find as much evidence as any; else a c.
        dense: whether the reverse kernels have full covariances or diagonal ones; None:
            full ones up to 256 dimensions.
        path: see :class:`RTKMALA`.
        forward_mode_differentiation: see :class:`RTKMALA`.

    Raises:
        ValueError, TypeError: for any option outside the above, at construction; for a
            model that cannot be sampled, at ``run``.

    References:
        C. Andrieu, A. Doucet, R. Holenstein, *Particle Markov chain Monte Carlo methods*,
        JRSS-B 2010. N. Whiteley, discussion of it: backward sampling. L. Wu et al.,
        *Practical and asymptotically exact conditional sampling in diffusion models*,
        NeurIPS 2023, arXiv 2306.17775: the twist.
    """

    _decides_by_row = True

    def __init__(
        self,
        model: Callable | None = None,
        *,
        score: Any = None,
        num_particles: int = _NUM_PARTICLES,
        num_levels: int | None = None,
        ladder: Ladder = "angle",
        likelihood_variance: float | None = None,
        dense: bool | None = None,
        path: str | None = None,
        forward_mode_differentiation: bool = False,
    ):
        super().__init__(
            model,
            score=score,
            path=path,
            forward_mode_differentiation=forward_mode_differentiation,
        )
        check_positive_int("num_particles", num_particles)
        if num_levels is not None:
            check_positive_int("num_levels", num_levels)
        if likelihood_variance is not None:
            check_positive("likelihood_variance", likelihood_variance)
        self._ladders = {
            has_energy: as_levels(ladder, num_levels, default)
            for has_energy, default in _NUM_LEVELS.items()
        }
        self._follows_likelihood = isinstance(ladder, str)
        self._num_particles = num_particles
        self._likelihood_variance = likelihood_variance
        self._dense = dense

    # -- what NumPyro and ArviZ read ------------------------------------------------

    @property
    def num_levels(self) -> int:
        """K, the noise levels; as of a score until it has run."""
        return len(self._times) - 1

    @property
    def num_particles(self) -> int:
        """n, particles of a draw."""
        return self._num_particles

    @property
    def default_fields(self) -> tuple[str, ...]:
        """Fields collected without asking."""
        return (
            "z",
            "diverging",
            "accept_prob",
            "num_score_evals",
            "potential_energy",
            "sample_size",
            "log_evidence",
        )

    @property
    def guarantee(self) -> str:
        """One sentence on what the draws are; of both laws until a model has run."""
        density = "the learned density, whatever the network learned"
        drawn = f"the law that the network draws in {self.num_levels} Gaussian steps"
        law = f"{density}; with a score alone, under {drawn}"
        if self._problem.is_noted:
            law = density if self._problem.has_energy else drawn
        return (
            f"exact: a Markov chain whose stationary law is the posterior under {law}"
        )

    def get_diagnostics_str(self, state: ParticleState) -> str:
        """Shown beside the progress bar."""
        size = float(np.min(np.asarray(state.sample_size)))
        moved = float(np.mean(np.asarray(state.mean_accept_prob)))
        return (
            f"{self._num_particles} particles, {self.num_evals} evals/draw, "
            f"moved {moved:.2f}, least ESS {size:.0f}"
        )

    # -- the chain -----------------------------------------------------------------

    def num_init_evals(self, dim: int, num_chains: int) -> int:
        """Network evaluations before the first draw of chains that share their levels.

        Args:
            dim: numbers of a draw, ordinary sites included.
            num_chains: chains of the run.
        """
        chosen = self.has_likelihood and self._likelihood_variance is None
        runs = NUM_CHOICE_RUNS * chosen + NUM_RUNS * num_chains
        shape = self._problem.rows.shape if self._problem.is_noted else (1, dim)
        measured = num_spread_evals(self._times, shape, dense=self._is_dense(shape))
        return measured + runs * self.num_evals

    @property
    def num_evals(self) -> int:
        """Network evaluations of one draw of one chain; as of a score until it has run."""
        return self._num_particles * (self.num_levels + self._is_of_energy)

    @property
    def _is_of_energy(self) -> bool:
        return self._problem.is_noted and self._problem.has_energy

    @property
    def _times(self) -> np.ndarray:
        return self._ladders[self._is_of_energy]

    @property
    def _num_pilot(self) -> int:
        return NUM_RUNS * self._num_particles

    def _build(self, rng_key, init_params, args, kwargs, is_single, origin):
        """The same levels and c for all chains; each starts with particles of its own."""
        adapt, plan, bound = self._choose(args, kwargs, origin)
        one = lambda key, params: self._init_one(
            key, params, args, kwargs, adapt, plan, bound
        )
        build = one if is_single else jax.vmap(one)
        state, has_start = build(rng_key, init_params)
        return state._replace(shared=plan), has_start

    def _choose(
        self, args: tuple, kwargs: dict, origin: jax.Array
    ) -> tuple[ParticleAdaptState, ParticlePlan, Bound]:
        """Levels and c, from a key of their own: by the model and its data alone.

        With a score alone they are part of the law of the draws, which must not be another
        one for another chain, or seed.
        """
        key_prior, key_moment, key_variance = jr.split(jr.key(_LAW), 3)
        frame = Frame(*self._problem.ordinary_location(key_prior, args, kwargs), origin)
        bound = self._problem.bind(args, kwargs, frame)
        rows, target = self._problem.rows, self._target(bound)
        dense = self._is_dense(rows.shape)
        at = (target.base, self._times, rows.shape, rows.num_ordinary)
        prior = spread_of(key_moment, *at, dense=dense)
        sharpness = self._sharpness(key_variance, prior, target)
        plan, zero = self._plan(prior, sharpness), jnp.zeros((), frame.origin.dtype)
        adapt = ParticleAdaptState(
            likelihood_variance=sharpness.variance,
            times=plan.levels.time,
            law_gap=zero if self._problem.has_energy else law_gap(prior, plan),
            frame=frame,
            moments=no_draws(frame.loc),
        )
        return adapt, plan, bound

    def _sharpness(
        self, key: jax.Array, prior: PriorSpread, target: Target
    ) -> Sharpness:
        """What particles look ahead by: the option's c, or the best that can be found."""
        shape, dtype = self._problem.rows.shape, prior.times.dtype
        dense, given = self._is_dense(shape), self._likelihood_variance
        even = partial(even_sharpness, shape=shape, dense=dense)
        if target.likelihood is None or given is not None:
            return even(jnp.asarray(1.0 if given is None else given, dtype))
        run = lambda key, sharpness: self._sweep(
            key, None, target, self._plan(prior, sharpness)
        )
        curved = partial(
            sharpness_at,
            target.likelihood,
            dense=dense,
            forward_mode=self._problem.forward_mode,
        )
        try:
            jax.eval_shape(curved, jax.ShapeDtypeStruct((1, *shape), dtype))
        except Exception:  # whatever a function of the user's may raise without one
            curved = None
        return choose_sharpness(key, run, shape, even, curved)

    def _is_dense(self, shape: tuple[int, int]) -> bool:
        return shape[1] <= _LARGEST_DENSE if self._dense is None else self._dense

    def _init_one(self, key, init_params, args, kwargs, adapt, plan, bound: Bound):
        key, key_path, key_up = jr.split(key, 3)
        target, rows = self._target(bound), self._problem.rows
        run = lambda key: self._sweep(key, None, target, plan)
        path, has_start = first_path(key_path, run)
        z = bound.unflatten(rows.join(path[0]))
        if init_params is not None:
            z = self._start_from(init_params, args, kwargs, z)
            noise = jr.normal(key_up, path[1:].shape, path.dtype)
            path = noised(noise, rows.split(bound.flatten(z)), plan.segments)
            has_start = True  # if it has a density, which is asked below of all
        log_density = bound.at_ground(rows.join(path[0])).log_density
        zero = jnp.zeros((), path.dtype)
        state = ParticleState(
            i=jnp.zeros((), int),
            z=z,
            potential_energy=bound.energy(log_density),
            accept_prob=zero,
            diverging=jnp.array(False),
            num_score_evals=jnp.asarray(self.num_evals),
            sample_size=jnp.zeros(self.num_levels + 1, path.dtype),
            log_evidence=zero,
            mean_accept_prob=zero,
            row_accept_prob=jnp.zeros(rows.num, path.dtype),
            path=path,
            adapt_state=adapt,
            shared=None,  # type: ignore[arg-type]
            rng_key=key,
        )
        return state, has_start & jnp.isfinite(log_density)

    def _plan(self, prior: PriorSpread, sharpness: Sharpness) -> ParticlePlan:
        follows = self._follows_likelihood and self.has_likelihood
        times = jnp.asarray(self._times, prior.times.dtype)
        return plan_at(prior, times, sharpness, follows_likelihood=follows)

    def _target(self, bound: Bound) -> Target:
        likelihood = bound.by_row.log_likelihood
        if likelihood is not None:
            likelihood = value_and_grad(likelihood, self._problem.forward_mode)
        return Target(bound.by_row.base, likelihood, self._problem.has_energy)

    def _sweep(self, key, path, target: Target, plan: ParticlePlan) -> Sweep:
        shape, dtype = self._problem.rows.shape, plan.levels.time.dtype
        noise = SweepNoise.draw(key, self.num_levels, self._num_particles, shape, dtype)
        return sweep(noise, path, target, plan)

    def sample(
        self, state: ParticleState, model_args: tuple, model_kwargs: dict | None
    ) -> ParticleState:
        """One draw (with vectorised chains: one per chain)."""
        plan, chains = state.shared, state._replace(shared=None)

        def step(one):
            new = self._sample_one(one._replace(shared=plan), model_args, kwargs)
            return new._replace(shared=None)

        kwargs = {} if model_kwargs is None else model_kwargs
        is_single = is_prng_key(state.rng_key)
        return (step if is_single else jax.vmap(step))(chains)._replace(shared=plan)

    def _sample_one(self, state: ParticleState, args: tuple, kwargs: dict):
        adapt = state.adapt_state
        self._problem.check_rows(args, kwargs)
        bound = self._problem.bind(args, kwargs, adapt.frame)
        plan, rows = state.shared, self._problem.rows
        key, key_up, key_sweep = jr.split(state.rng_key, 3)
        before = rows.split(bound.flatten(state.z))
        path = self._path_of(key_up, before, state, plan)
        found = self._sweep(key_sweep, path, self._target(bound), plan)
        # a row that did not move must stay what it was, to the last bit
        moved = jnp.any(found.path[0] != before, axis=1)
        is_new = rows.join(jnp.broadcast_to(moved[:, None], before.shape))
        z = jax.tree.map(
            jnp.where,
            self._problem.as_values(is_new),
            bound.unflatten(rows.join(found.path[0])),
            state.z,
        )
        log_density = jnp.sum(found.log_density + found.log_likelihood)
        row_moved = moved.astype(log_density.dtype)
        accept_prob = jnp.mean(row_moved)
        return state._replace(
            i=state.i + 1,
            z=z,
            potential_energy=bound.energy(log_density),
            accept_prob=accept_prob,
            diverging=~jnp.isfinite(log_density),
            sample_size=jnp.min(found.sample_size, axis=1),
            log_evidence=jnp.sum(found.log_evidence) + jnp.sum(bound.log_offset),
            mean_accept_prob=self._running(state, "mean_accept_prob", accept_prob),
            row_accept_prob=self._running(state, "row_accept_prob", row_moved),
            path=found.path,
            adapt_state=self._learn(adapt, state.i, z),
            rng_key=key,
        )

    def _path_of(self, key, bottom, state: ParticleState, plan) -> jax.Array:
        """The path that the present draw came down by.

        With an energy the levels above the draw are its noisings, whatever the data: they
        are drawn anew. So they are in warm-up, where the frame may have moved.
        """
        shape = (self.num_levels, *bottom.shape)
        fresh = noised(jr.normal(key, shape, bottom.dtype), bottom, plan.segments)
        if self._problem.has_energy:
            return fresh
        kept = state.path.at[0].set(bottom)
        if not self._problem.num_ordinary:
            return kept
        return jnp.where(state.i < self._num_warmup, fresh, kept)

    def _learn(self, adapt: ParticleAdaptState, iteration, z) -> ParticleAdaptState:
        """In warm-up the frame of the ordinary sites follows their draws."""
        if not self._problem.num_ordinary or not self._num_warmup:
            return adapt
        frame, moments = followed(
            adapt.frame,
            adapt.moments,
            self._num_warmup,
            iteration,
            self._problem.ordinary_values(z),
            self._problem.has_prior,
        )
        new = adapt._replace(frame=frame, moments=moments)
        return accept(iteration < self._num_warmup, new, adapt)
