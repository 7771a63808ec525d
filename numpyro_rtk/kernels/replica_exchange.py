# pyright: reportIncompatibleMethodOverride=false
"""RTKReplicaExchange: an exact kernel for posteriors with many modes."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from numpyro.util import is_prng_key

from numpyro_rtk import paths
from numpyro_rtk._checks import (
    check_fraction,
    check_non_negative_int,
    check_positive,
    check_positive_int,
)
from numpyro_rtk.core.exchange.modes import jump_bottom, log_shares
from numpyro_rtk.core.exchange.replicas import (
    Replicas,
    draw_sweeps,
    evals_per_sweep,
    evaluate_all,
)
from numpyro_rtk.core.exchange.sweep import sweep_pairs
from numpyro_rtk.core.inner import InnerSampler, accept, check_inner
from numpyro_rtk.core.mala import MALA
from numpyro_rtk.core.warmup.adapt import Frame
from numpyro_rtk.core.warmup.exchange import Adaptation, Method, PriorCurvature
from numpyro_rtk.core.warmup.pilot import NUM_PILOT, NUM_PILOTS
from numpyro_rtk.core.warmup.population import Descent
from numpyro_rtk.core.warmup.settings import plan_of
from numpyro_rtk.core.warmup.start import first_adaptation, noised_start, starts_of
from numpyro_rtk.core.warmup.windows import learn
from numpyro_rtk.kernels.base import GIBBS_SITES
from numpyro_rtk.kernels.exchange_reader import ExchangeReader
from numpyro_rtk.kernels.exchange_state import (
    ExchangeState,
    Tuned,
    evidence_fields,
    first_state,
)
from numpyro_rtk.kernels.gibbs import path_beside_blocks, with_reference
from numpyro_rtk.kernels.problem.problem import Problem
from numpyro_rtk.noise import Ladder, as_levels

__all__ = ["RTKReplicaExchange"]

# Fewer levels make cheaper draws, more make each exchange surer; from 10 to 64 dimensions
# 10 to 18 of them have the smallest error at equal evaluations (docs/measured.md).
_NUM_LEVELS = 14
# Of the population that the chains start from: enough for a mode with a hundredth of the
# mass at the level where it has least. In many dimensions no number is, for a mode that is
# at all narrower, and particles are dear.
_NUM_PARTICLES, _FEW_PARTICLES, _MANY_DIMENSIONS = 1024, 256, 64
# Beyond this many dimensions matrices would cost more than they gain; see `dense`.
_LARGEST_DENSE = 128
_EXCHANGES = ("best", "rtk", "swap")


class RTKReplicaExchange(ExchangeReader):
    r"""Replica exchange along the noise ladder, with reverse-transition-kernel moves.

    **What the draws are.** *Exact*: the chain's stationary law is the model's posterior
    whatever the network learned. A poor network, or too few levels, costs acceptance
    between levels; ``rtk.diagnose(mcmc)`` says so in words. The kernel to reach for when
    the posterior has several modes; ``log_evidence`` comes with it.

    One replica per noise level moves at its level and is exchanged with its neighbours;
    the top one is drawn anew each time, so new modes arrive from the prior's noise end.

    Warm-up adapts step sizes, local spreads, the exchange's Gaussian proposal, and the
    levels; 200 draws or more are advised. Vectorised chains pool what they learn in it.

    Args:
        model: see :class:`RTKMALA`.
        score: see :class:`RTKMALA`; an energy is needed.
        num_levels: K, noise levels below the standard normal at the top (level 0, the
            posterior, included); 14 by default.
        num_particles: of the population that goes down the ladder before the first draw:
            it finds the modes, and every chain starts from it. More find narrower ones.
            None: 1,024 in up to 64 dimensions, else 256.
        num_sweeps: pairs of sweeps (even edges, then odd ones) per draw.
        inner: how replicas move at their levels: :class:`~numpyro_rtk.MALA` (the default),
            :class:`~numpyro_rtk.ULD` or a sampler of your own, Metropolis-adjusted with
            an acceptance that reads the energy.
        num_inner_steps: inner steps on the reverse kernel in each exchange.
        exchange: ``"best"``: on each edge what warm-up found to pass more often of
            ``"rtk"``, the reverse transition kernel, and ``"swap"``, a plain swap.
        ladder: first levels, as for :class:`RTKMALA` but ``"log_snr"`` by default with
            ``score`` too; warm-up moves them.
        adapt_ladder: whether warm-up moves the levels.
        step_size: of the local moves; None adapts one per level.
        target_accept_prob: aim of that adaptation.
        dense: whether warm-up adapts full covariances (as ``dense_mass`` of NUTS does) or
            their diagonals; None: full ones up to 128 dimensions.
        path: see :class:`RTKMALA`.
        forward_mode_differentiation: see :class:`RTKMALA`.

    Raises:
        ValueError, TypeError: for any option or combination outside the above, at
            construction; for a model that cannot be sampled, at ``run``.

    References:
        Reverse transition kernel: X. Huang et al., NeurIPS 2024, arXiv 2405.16387.
        Exchange: S. Syed, A. Bouchard-Cote, G. Deligiannidis, A. Doucet, *Non-reversible
        parallel tempering*, JRSS-B 2022, arXiv 1905.02939; with an acceptance from both
        ways' log-weight increments: A. Ballard & C. Jarzynski, *Replica exchange with
        nonequilibrium switches*, PNAS 2009.
    """

    def __init__(
        self,
        model: Callable | None = None,
        *,
        score: Any = None,
        num_levels: int | None = None,
        num_particles: int | None = None,
        num_sweeps: int = 2,
        inner: InnerSampler | None = None,
        num_inner_steps: int = 0,
        exchange: str = "best",
        ladder: Ladder = "log_snr",
        adapt_ladder: bool = True,
        step_size: float | None = None,
        target_accept_prob: float = 0.65,
        dense: bool | None = None,
        path: str | None = None,
        forward_mode_differentiation: bool = False,
    ):
        if exchange not in _EXCHANGES:
            raise ValueError(
                f"`exchange` must be one of {_EXCHANGES}; got {exchange!r}."
            )
        inner = MALA() if inner is None else inner
        check_inner(inner)
        if not inner.is_exact:
            raise ValueError(
                "`inner` must have a Metropolis test that reads the energy in "
                f"RTKReplicaExchange, whose levels are else biased; got {inner!r}."
            )
        super().__init__(
            model,
            score=score,
            path=path,
            forward_mode_differentiation=forward_mode_differentiation,
        )
        _check_options(num_levels, num_sweeps, num_particles, num_inner_steps, exchange)
        check_fraction("target_accept_prob", target_accept_prob)
        if step_size is not None:
            check_positive("step_size", step_size)
        self._inner = inner
        self._times = as_levels(ladder, num_levels, _NUM_LEVELS)
        self._num_sweeps = num_sweeps
        self._num_inner_steps = num_inner_steps
        # inner steps go on from the Gaussian proposal, which a plain swap has not
        self._exchange = "rtk" if num_inner_steps else exchange
        self._follows_likelihood = isinstance(ladder, str)
        self._adapt_ladder = adapt_ladder
        self._num_particles = num_particles
        self._dense = dense
        self._step_size = step_size
        self._target_accept_prob = target_accept_prob

    # -- what NumPyro and ArviZ read ------------------------------------------------

    @property
    def num_levels(self) -> int:
        """K, the noise levels below the standard normal."""
        return len(self._times) - 1

    @property
    def num_particles(self) -> int:
        """Particles that have gone down before the first draw, in all."""
        method = self._method
        return method.num_particles * method.num_populations(self._problem.dim)

    def num_init_evals(self, state: ExchangeState) -> int:
        """Evaluations before the first draw, pilot and population, of chains that share."""
        run = NUM_PILOT * self.num_levels * (1 + self._inner.evals_per_step)
        pilot = run * NUM_PILOTS if self.has_likelihood else 0
        return pilot + int(np.max(np.asarray(state.shared.found.num_evals)))

    # -- the chain -----------------------------------------------------------------

    @property
    def _num_pilot(self) -> int:
        return self._method.num_particles

    @property
    def num_evals(self) -> int:
        """Network evaluations of one draw of one chain."""
        # replicas are evaluated anew: the data may be others
        pair = evals_per_sweep(self._inner, self.num_levels, self._num_inner_steps)
        return self.num_levels + 1 + self._num_sweeps * pair + 1

    def _check(self) -> None:
        if not self._problem.has_energy:
            raise TypeError(
                "RTKReplicaExchange needs an energy, and the density has a score only: use "
                "`rtk.RTKParticleGibbs`, or make it an energy (`rtk.distill`; from samples "
                "`rtk.fit` without `network`)."
            )

    @property
    def _method(self) -> Method:
        """What core needs to know of the options."""
        dim = self._problem.dim
        default = _NUM_PARTICLES if dim <= _MANY_DIMENSIONS else _FEW_PARTICLES
        return Method(
            inner=self._inner,
            times=self._times,
            follows_likelihood=self._follows_likelihood,
            adapt_ladder=self._adapt_ladder,
            exchange=self._exchange,
            dense=dim <= _LARGEST_DENSE if self._dense is None else self._dense,
            step_size=self._step_size,
            target_accept_prob=self._target_accept_prob,
            num_particles=self._num_particles or default,
            has_likelihood=self.has_likelihood,
        )

    def _build(self, rng_key, init_params, args, kwargs, is_single, origin):
        """One population, from the first chain's key; each chain starts with its own."""
        first = rng_key if is_single else rng_key[0]
        shared, population = self.look(jr.fold_in(first, 1), args, kwargs, origin)
        one = lambda key, params: self._init_one(
            key, params, shared, population, args, kwargs
        )
        build = one if is_single else jax.vmap(one)
        state, has_start = build(rng_key, init_params)
        return state._replace(shared=shared), has_start

    def prepare(self, key: jax.Array, args: tuple, kwargs: dict) -> Problem:
        """Trace the model for :meth:`look` without a run; the problem."""
        self._problem.setup(key, args, kwargs)
        self._check()
        return self._problem

    def look(
        self, key: jax.Array, args: tuple, kwargs: dict, origin: jax.Array
    ) -> tuple[Adaptation, Descent]:
        """What a population sees of the posterior; after the problem's ``setup``.

        Log densities are counted from those at the origin, see :class:`Frame`.
        """
        key_prior, key_moment, key_down = jr.split(key, 3)
        frame = Frame(*self._problem.ordinary_location(key_prior, args, kwargs), origin)
        bound = self._problem.bind(args, kwargs, frame)
        moment, _ = paths.calibrate(
            key_moment, paths.scores_of(bound.base), self._times, self._problem.dim
        )
        prior = PriorCurvature(jnp.asarray(self._times, moment.dtype), moment)
        return first_adaptation(
            key_down,
            bound.path,
            paths.levels_of,
            self._method,
            prior,
            frame,
            kwargs.get(GIBBS_SITES),
        )

    def _init_one(self, key, init_params, shared, population, args, kwargs):
        key, key_start, key_noise = jr.split(key, 3)
        bound = self._problem.bind(args, kwargs, shared.frame)
        plan = self._plan(shared)
        path = path_beside_blocks(self._problem, bound, shared, args, kwargs)
        replicas = starts_of(key_start, population, shared.settings)
        z = bound.unflatten(replicas[0])
        if init_params is not None:
            z = self._start_from(init_params, args, kwargs, z)
            replicas = noised_start(
                key_noise, bound.flatten(z), replicas, path, plan.levels
            )
        at_start = evaluate_all(path, plan.levels, replicas).log_density[0]
        state = first_state(
            key,
            shared,
            replicas,
            z=z,
            potential_energy=bound.energy(at_start),
            num_score_evals=self.num_evals,
            log_offset=bound.log_offset,
        )
        return state, jnp.isfinite(at_start)

    def _plan(self, shared: Adaptation):
        return plan_of(shared.settings, paths.levels_of)

    def sample(
        self, state: ExchangeState, model_args: tuple, model_kwargs: dict | None
    ) -> ExchangeState:
        """One draw (with vectorised chains: one per chain)."""
        kwargs = {} if model_kwargs is None else model_kwargs
        is_single = is_prng_key(state.rng_key)
        iteration = state.i if is_single else state.i[0]
        shared = with_reference(state.shared, kwargs, iteration < self._num_warmup)
        chains = state._replace(shared=None)
        if is_single:
            chains = jax.tree.map(lambda leaf: leaf[None], chains)
        step = lambda s: self._draw(s, shared, model_args, kwargs)
        # sweeps first, then chains
        new, info, scores = jax.vmap(step, out_axes=(0, 1, 1))(chains)
        shared = learn(
            shared,
            self._method,
            self._num_warmup,
            iteration,
            info,
            scores,
            new.replicas[:, 0],
            jax.vmap(self._problem.ordinary_values)(new.z),
            self._problem.has_prior,
        )
        tuned = Tuned.of(shared)
        if is_single:
            new = jax.tree.map(lambda leaf: leaf[0], new)
        else:
            num = len(new.i)
            each = lambda leaf: jnp.broadcast_to(leaf, (num, *leaf.shape))
            tuned = jax.tree.map(each, tuned)
        return new._replace(adapt_state=tuned, shared=shared)

    def _sample_one(self, state, args, kwargs):
        return self.sample(state, args, kwargs)

    def _draw(self, state, adapt: Adaptation, args, kwargs):
        """One chain's sweeps; also what adaptation learns from, per sweep."""
        bound = self._problem.bind(args, kwargs, adapt.frame)
        path = path_beside_blocks(self._problem, bound, adapt, args, kwargs)
        plan = self._plan(adapt)
        key, key_draw = jr.split(state.rng_key)
        noise = draw_sweeps(
            key_draw, plan, self._inner, 2 * self._num_sweeps, self._num_inner_steps
        )
        # the draw is kept in the user's coordinates, which warm-up's scaling leaves
        position = state.replicas.at[0].set(bound.flatten(state.z))
        evaluation = evaluate_all(path, plan.levels, position)
        before = Replicas(position, evaluation, state.phase, state.round_trips)
        after, info, scores = sweep_pairs(
            noise, before, path, plan, self._inner, self._num_inner_steps
        )
        jump = jax.tree.map(lambda leaf: leaf[-1], noise.jump)
        after, jump_accept = jump_bottom(jump, after, path, plan.levels, adapt.modes)
        ground = jax.tree.map(lambda leaf: leaf[0], (after.position, after.evaluation))
        moved = jnp.any(ground[0] != position[0])
        z = accept(moved, bound.unflatten(ground[0]), state.z)
        log_density = ground[1].log_density
        swap = jnp.nanmean(info.swap_accept_prob, axis=0)
        is_kept = state.i >= self._num_warmup
        new = state._replace(
            i=state.i + 1,
            z=z,
            potential_energy=bound.energy(log_density),
            accept_prob=jnp.mean(swap),
            diverging=jnp.any(info.is_diverging) | ~jnp.isfinite(log_density),
            swap_accept_prob=swap,
            level_accept_prob=jnp.mean(info.local_accept_prob, axis=0),
            jump_accept_prob=jump_accept,
            mode=jnp.argmax(log_shares(adapt.regions, after.position[:1])[0]),
            round_trips=jnp.where(is_kept, after.round_trips, 0),
            phase=after.phase,
            replicas=after.position,
            rng_key=key,
            **evidence_fields(
                state.bridge_sums,
                info,
                adapt.settings.log_ratio,
                bound.log_offset,
                is_kept,
            ),
        )
        return new, info, scores


def _check_options(num_levels, num_sweeps, num_particles, num_inner_steps, exchange):
    for name, value in (("num_levels", num_levels), ("num_particles", num_particles)):
        if value is not None:
            check_positive_int(name, value)
    check_positive_int("num_sweeps", num_sweeps)
    check_non_negative_int("num_inner_steps", num_inner_steps)
    if exchange == "swap" and num_inner_steps:
        raise ValueError(
            '`num_inner_steps` must be 0 with `exchange="swap"`: a swap has no proposal '
            f"to go on from; got {num_inner_steps}."
        )
