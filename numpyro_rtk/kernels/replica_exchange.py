# pyright: reportIncompatibleMethodOverride=false
"""RTKReplicaExchange: an exact kernel for posteriors with many modes."""

import warnings
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

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
from numpyro_rtk.core.adapt import Moments, adapt_step_size, add_draw, spread_of
from numpyro_rtk.core.annealed import Path
from numpyro_rtk.core.exchange import (
    ExchangePlan,
    Replicas,
    SweepInfo,
    bridge_terms,
    draw_sweeps,
    evals_per_sweep,
    evaluate_all,
    sweep,
)
from numpyro_rtk.core.ladder import (
    LEAST_ACCEPTANCE,
    LadderAdapt,
    Tally,
    add_sweep,
    diagonal_of,
    edges_of,
    empty_tally,
    first_settings,
    next_settings,
    suggest_levels,
)
from numpyro_rtk.core.mala import mala
from numpyro_rtk.core.population import population_down
from numpyro_rtk.core.segment import segment_between
from numpyro_rtk.core.uld import uld
from numpyro_rtk.kernels.base import GIBBS_SITES, PathKernel
from numpyro_rtk.kernels.problem import Bound
from numpyro_rtk.noise import Ladder, as_ladder

__all__ = ["ExchangeAdapt", "ExchangeState", "RTKReplicaExchange"]

# Fewer levels make cheaper draws, more make each exchange surer; from 10 to 64 dimensions
# 10 to 18 of them have the smallest error at equal evaluations (docs/measured.md).
_NUM_LEVELS = 14
# The pilot that chooses the likelihood's variance c, on the standardised scale.
_VARIANCE_GRID = np.geomspace(1e-6, 10.0, 15)
_PILOT_PARTICLES = 64
# Beyond this many dimensions matrices would cost more than they gain; see `dense`.
_LARGEST_DENSE = 128
# Windows of warm-up end at these fractions of it; the levels stay after `_LAST_MOVE`, the
# starts go on to be fitted, and what is left measures the acceptance.
_WINDOW_ENDS = (0.06, 0.11, 0.16, 0.22, 0.29, 0.36, 0.64, 0.92)
_LAST_MOVE = 0.37


class ExchangeAdapt(NamedTuple):
    """What warm-up tunes; frozen afterwards.

    Attributes:
        settings: levels, starts, local spreads; see ``core/ladder.py``.
        tally: sums of the present window.
        loc: centre of the ordinary sites, unconstrained, ``(num_ordinary,)``.
        scale: their scale.
        moments: running moments of their draws.
        reference: the other blocks' values that the levels above 0 are bound to, in a
            ``Gibbs`` block; None otherwise.
    """

    settings: LadderAdapt
    tally: Tally
    loc: jax.Array
    scale: jax.Array
    moments: Moments
    reference: Any

    @property
    def step_size(self) -> jax.Array:
        """Local step sizes in force, ``(K,)``."""
        return self.settings.step_size


class ExchangeState(NamedTuple):
    """State of :class:`RTKReplicaExchange`.

    Attributes:
        i: iteration, warm-up included.
        z: the draw: a dict of unconstrained sites, or an array of the event shape.
        potential_energy: minus the log density of the draw (unconstrained).
        accept_prob: mean of ``swap_accept_prob``.
        diverging: whether a local move at level 0 diverged.
        num_score_evals: network evaluations spent on this draw.
        swap_accept_prob: ``(K,)``, acceptance of the exchanges, lowest edge first.
        level_accept_prob: ``(K,)``, acceptance of the local moves, level 0 first.
        bridge_down: ``(K,)``, terms of the evidence; see :func:`rtk.log_evidence`.
        bridge_up: ``(K,)``, likewise.
        round_trips: lineages that have gone from level 0 to the top and back, since
            warm-up.
        log_evidence: running estimate of the log evidence since warm-up.
        bridge_sums: ``(2, K)``, sums of the terms since warm-up.
        phase: ``(K + 1,)``, where each replica's lineage has been.
        replicas: standardised positions of all levels, ``(K + 1, dim)``.
        adapt_state: see :class:`ExchangeAdapt`; vectorised chains share one.
        rng_key: PRNG key of the next draw.
    """

    i: jax.Array
    z: Any
    potential_energy: jax.Array
    accept_prob: jax.Array
    diverging: jax.Array
    num_score_evals: jax.Array
    swap_accept_prob: jax.Array
    level_accept_prob: jax.Array
    bridge_down: jax.Array
    bridge_up: jax.Array
    round_trips: jax.Array
    log_evidence: jax.Array
    bridge_sums: jax.Array
    phase: jax.Array
    replicas: jax.Array
    adapt_state: ExchangeAdapt
    rng_key: jax.Array


class RTKReplicaExchange(PathKernel):
    r"""Replica exchange along the noise ladder, with reverse-transition-kernel moves.

    **What the draws are.** *Exact*: the chain's stationary law is the model's posterior
    whatever the network learned. A poor network, or too few levels, costs acceptance
    between levels; ``rtk.diagnose(mcmc)`` says so in words. The kernel to reach for when
    the posterior has several modes; ``log_evidence`` comes with it.

    One replica per noise level moves at its level and is exchanged with its neighbours;
    the top one is drawn anew each time, so new modes arrive from the prior's noise end.

    Warm-up adapts step sizes, local spreads, the exchange's Gaussian start, and the
    levels; 200 draws or more are advised. Vectorised chains pool what they learn in it.

    Args:
        model: see :class:`RTKMALA`.
        score: see :class:`RTKMALA`; an energy is needed.
        num_levels: K, noise levels below the standard normal at the top (level 0, the
            posterior, included); 14 by default.
        num_sweeps: pairs of sweeps (even edges, then odd ones) per draw.
        inner: local moves: ``"mala"`` or ``"uld"`` (Metropolis-adjusted).
        num_leapfrog: leapfrog steps of a local ``"mala"`` move.
        num_inner_steps: inner steps on the reverse kernel in each exchange.
        exchange: ``"rtk"``, or ``"swap"`` for plain swaps (for comparison).
        ladder: first levels, as for :class:`RTKMALA` but ``"log_snr"`` by default with
            ``score`` too; warm-up moves them.
        adapt_ladder: whether warm-up moves the levels.
        step_size: of the local moves; None adapts one per level.
        target_accept_prob: aim of that adaptation.
        friction: of ``"uld"``.
        dense: whether warm-up adapts full covariances (as ``dense_mass`` of NUTS does) or
            their diagonals; None: full ones up to 128 dimensions.
        path: see :class:`RTKMALA`.

    Raises:
        ValueError, TypeError: for any option or combination outside the above, at
            construction; for a model that cannot be sampled, at ``run``.

    References:
        Reverse transition kernel: X. Huang et al., NeurIPS 2024, arXiv 2405.16387.
        Exchange: S. Syed, A. Bouchard-Cote, G. Deligiannidis, A. Doucet, *Non-reversible
        parallel tempering*, JRSS-B 2022, arXiv 1905.02939; works: A. Ballard & C.
        Jarzynski, *Replica exchange with nonequilibrium switches*, PNAS 2009.
    """

    def __init__(
        self,
        model: Callable | None = None,
        *,
        score: Any = None,
        num_levels: int | None = None,
        num_sweeps: int = 2,
        inner: str = "mala",
        num_leapfrog: int = 2,
        num_inner_steps: int = 0,
        exchange: str = "rtk",
        ladder: Ladder = "log_snr",
        adapt_ladder: bool = True,
        step_size: float | None = None,
        target_accept_prob: float = 0.65,
        friction: float = 2.0,
        dense: bool | None = None,
        path: str | None = None,
    ):
        for name, value, allowed in (
            ("inner", inner, ("mala", "uld")),
            ("exchange", exchange, ("rtk", "swap")),
        ):
            if value not in allowed:
                raise ValueError(f"`{name}` must be one of {allowed}; got {value!r}.")
        if inner == "uld":
            build_inner = partial(uld, friction=friction, adjusted=True)
        else:
            build_inner = partial(mala, num_leapfrog=num_leapfrog)
        super().__init__(model, score=score, path=path, build_inner=build_inner)
        if num_levels is not None:
            check_positive_int("num_levels", num_levels)
        check_positive_int("num_sweeps", num_sweeps)
        check_non_negative_int("num_inner_steps", num_inner_steps)
        check_fraction("target_accept_prob", target_accept_prob)
        if step_size is not None:
            check_positive("step_size", step_size)
        if exchange == "swap" and num_inner_steps:
            raise ValueError(
                '`num_inner_steps` must be 0 with `exchange="swap"`: a swap has no start '
                f"to go on from; got {num_inner_steps}."
            )
        self._times = as_ladder(
            ladder, _NUM_LEVELS if num_levels is None else num_levels
        )
        self._num_levels = len(self._times) - 1
        if num_levels is not None and self._num_levels != num_levels:
            raise ValueError(
                f"`ladder` must have `num_levels` + 1 = {num_levels + 1} times; got "
                f"{len(self._times)}. Give one of the two."
            )
        self._has_warned = False
        self._num_sweeps = num_sweeps
        self._num_inner_steps = num_inner_steps
        self._exchange = exchange
        self._adapt_ladder = adapt_ladder
        self._dense = dense
        self._step_size = step_size
        self._target_accept_prob = target_accept_prob

    # -- what NumPyro and ArviZ read ------------------------------------------------

    @property
    def default_fields(self) -> tuple[str, ...]:
        """Fields collected without asking."""
        return (
            "z",
            "diverging",
            "accept_prob",
            "potential_energy",
            "num_score_evals",
            "swap_accept_prob",
            "level_accept_prob",
            "round_trips",
            "log_evidence",
            "bridge_down",
            "bridge_up",
        )

    @property
    def guarantee(self) -> str:
        """One sentence on what the draws are; examples and docs print it."""
        return (
            "exact: replica exchange along the noise ladder, a Markov chain whose "
            "stationary law is the target, whatever the network learned"
        )

    @property
    def num_levels(self) -> int:
        """K, the noise levels below the standard normal."""
        return self._num_levels

    @property
    def num_init_evals(self) -> tuple[int, int]:
        """Evaluations before the first draw: of the pilot, and per chain.

        Vectorised chains share one pilot.
        """
        run = _PILOT_PARTICLES * self._num_levels * (1 + self._inner.evals_per_step)
        pilot = run * (len(_VARIANCE_GRID) if self.model is not None else 1)
        return pilot, run

    def get_diagnostics_str(self, state: ExchangeState) -> str:
        """Shown beside the progress bar; warns once where levels are too few."""
        self._warn_of_few_levels(state)
        worst = float(np.min(np.asarray(state.swap_accept_prob)))
        return (
            f"exact, {self.num_evals} evals/draw, exchange "
            f"{np.mean(np.asarray(state.accept_prob)):.2f} (worst edge {worst:.2f}), "
            f"{int(np.sum(np.asarray(state.round_trips)))} round trips"
        )

    def _warn_of_few_levels(self, state: ExchangeState) -> None:
        """By the acceptance at the end of warm-up, when the driver shows a state."""
        tally = state.adapt_state.tally
        iteration = int(np.max(np.asarray(state.i)))
        if self._has_warned or iteration < max(self._num_warmup, 1):
            return
        count = np.asarray(tally.count)
        if np.any(count == 0):
            return
        accept = 1.0 - np.asarray(tally.rejection) / count
        if accept.mean() < LEAST_ACCEPTANCE:
            self._has_warned = True
            warnings.warn(
                f"RTKReplicaExchange has too few levels: at the end of warm-up exchanges "
                f"were accepted with {accept.mean():.2f} on average. Set "
                f"`num_levels={suggest_levels(accept)}`.",
                UserWarning,
                stacklevel=2,
            )

    def log_likelihood(
        self, state: ExchangeState, model_args: tuple, model_kwargs: dict
    ) -> jax.Array | None:
        """Log likelihood at the replicas of all levels, ``(chains, K + 1)``.

        The first column is at the draws; 0 without a model. None where the model has
        ordinary sites, whose prior is not told apart from it.
        """
        if self._problem.num_ordinary:
            return None
        adapt = state.adapt_state
        bound = self._problem.bind(model_args, model_kwargs, adapt.loc, adapt.scale)
        ground = jax.tree.map(lambda leaf: leaf[0], self._plan(adapt.settings).levels)

        def one(u):
            total = bound.path(u, ground).log_density
            return total - bound.base(u, ground.t).log_density

        replicas = state.replicas.reshape(-1, *state.replicas.shape[-2:])
        return jax.jit(jax.vmap(jax.vmap(one)))(replicas)

    # -- the chain -----------------------------------------------------------------

    @property
    def _num_pilot(self) -> int:
        return _PILOT_PARTICLES

    @property
    def num_evals(self) -> int:
        """Network evaluations of one draw of one chain."""
        # the replicas are evaluated anew before each draw: the data may be others
        pair = evals_per_sweep(self._inner, self._num_levels, self._num_inner_steps)
        return self._num_levels + 1 + self._num_sweeps * pair

    def _check(self) -> None:
        if not self._problem.has_energy:
            raise TypeError(
                "RTKReplicaExchange needs an energy, and the density has a score only. "
                "Train an EnergyModel (`rtk.fit` without `network`), or use "
                "`rtk.RTKULD`, whose draws are approximate."
            )

    def _build(self, rng_key, init_params, args, kwargs, is_single):
        """Adaptation from the first chain's key, shared by vectorised chains."""
        first = rng_key if is_single else rng_key[0]
        adapt = self._first_adapt(jr.fold_in(first, 1), args, kwargs)
        one = lambda key, params: self._init_one(key, params, adapt, args, kwargs)
        build = one if is_single else jax.vmap(one)
        state, has_start = build(rng_key, init_params)
        return state._replace(adapt_state=adapt), has_start

    def _first_adapt(self, key, args, kwargs) -> ExchangeAdapt:
        key_prior, key_moment, key_pilot = jr.split(key, 3)
        loc, scale = self._problem.ordinary_location(key_prior, args, kwargs)
        dim = self._problem.dim
        bound = self._problem.bind(args, kwargs, loc, scale)
        moment = paths.calibrate(key_moment, bound.base, self._times, dim)
        dtype = moment.dtype
        times = jnp.asarray(self._times, dtype)
        segments = segment_between(times[:-1], times[1:], moment[1:])
        step_size = self._step_size
        if step_size is None:
            step_size = 0.8 * min(1.0, (dim / 4.0) ** -(1.0 / 6.0))
        settings = first_settings(
            times,
            jnp.ones((), dtype),
            segments.start_variance / segments.v[:, None],
            moment[:-1],
            step_size,
            dense=dim <= _LARGEST_DENSE if self._dense is None else self._dense,
        )
        adapt = ExchangeAdapt(
            settings=settings,
            tally=empty_tally(settings),
            loc=loc,
            scale=scale,
            moments=Moments(
                jnp.zeros((), int), jnp.zeros_like(loc), jnp.zeros_like(loc)
            ),
            reference=kwargs.get(GIBBS_SITES),
        )
        return self._choose_variance(key_pilot, bound, adapt)

    def _choose_variance(self, key, bound: Bound, adapt: ExchangeAdapt):
        """The c whose works vary least down the ladder, and what its population says."""
        settings = adapt.settings
        is_dense = settings.curvature.ndim == 3

        def pilot(inputs):
            key, variance = inputs
            plan = self._plan(settings._replace(likelihood_variance=variance))
            population = population_down(
                key, bound.path, plan, self._inner, _PILOT_PARTICLES
            )
            centre = jax.nn.logsumexp(population.work, axis=1)
            curvature = _curvature(population.evaluation.score[:-1], is_dense)
            return _hardness(population.work), curvature, centre

        grid = settings.likelihood_variance[None]
        if self.model is not None:
            grid = jnp.asarray(_VARIANCE_GRID, settings.likelihood_variance.dtype)
        found = jax.lax.map(pilot, (jr.split(key, len(grid)), grid))
        best = jnp.argmin(found[0])
        _, curvature, centre = jax.tree.map(lambda leaf: leaf[best], found)
        centre = centre - np.log(_PILOT_PARTICLES)
        settings = settings._replace(
            likelihood_variance=_between_variances(grid, found[0], best),
            curvature=curvature,
            centre=jnp.where(jnp.isfinite(centre), centre, 0.0),
        )
        # nothing is counted yet: this only takes the roots
        settings = next_settings(settings, adapt.tally, move_levels=False)
        return adapt._replace(settings=settings)

    def _init_one(self, key, init_params, adapt, args, kwargs):
        key, key_start, key_pick = jr.split(key, 3)
        bound = self._problem.bind(args, kwargs, adapt.loc, adapt.scale)
        plan = self._plan(adapt.settings)
        population = population_down(
            key_start, bound.path, plan, self._inner, _PILOT_PARTICLES
        )
        num_levels = self._num_levels
        # an independent choice at every level, among particles that have a density
        alive = jnp.isfinite(population.evaluation.log_density)
        chosen = jr.categorical(key_pick, jnp.where(alive, 0.0, -jnp.inf), axis=-1)
        replicas = population.position[jnp.arange(num_levels + 1), chosen]
        has_start = jnp.all(jnp.any(alive, axis=-1))
        z = bound.unflatten(replicas[0])
        if init_params is not None:
            z = self._start_from(init_params, args, kwargs, z)
            replicas = replicas.at[0].set(bound.flatten(z))
        path = self._path(bound, adapt, args, kwargs)
        evaluation = evaluate_all(path, plan.levels, replicas)
        has_start &= jnp.isfinite(evaluation.log_density[0])
        dtype = replicas.dtype
        nothing = jnp.zeros(num_levels, dtype)
        state = ExchangeState(
            i=jnp.zeros((), int),
            z=z,
            potential_energy=bound.log_volume - evaluation.log_density[0],
            accept_prob=jnp.zeros((), dtype),
            diverging=jnp.array(False),
            num_score_evals=jnp.asarray(self.num_evals),
            swap_accept_prob=nothing,
            level_accept_prob=nothing,
            bridge_down=nothing,
            bridge_up=nothing,
            round_trips=jnp.zeros((), int),
            log_evidence=jnp.sum(adapt.settings.centre),
            bridge_sums=jnp.zeros((2, num_levels), dtype),
            phase=jnp.zeros(num_levels + 1, int).at[0].set(1),
            replicas=replicas,
            adapt_state=None,  # type: ignore[arg-type]
            rng_key=key,
        )
        return state, has_start

    def _plan(self, settings: LadderAdapt) -> ExchangePlan:
        levels = paths.levels_of(settings.times, settings.likelihood_variance)
        return ExchangePlan(
            levels, edges_of(settings), settings.step_size, settings.scale
        )

    def _path(self, bound: Bound, adapt: ExchangeAdapt, args, kwargs) -> Path:
        """The path; in a Gibbs block only level 0 follows the other blocks.

        The levels above stay bound to values of theirs that are frozen after warm-up:
        were they to follow, their replicas would no longer be draws of their targets.
        """
        if GIBBS_SITES not in kwargs:
            return bound.path
        frozen = {**kwargs, GIBBS_SITES: adapt.reference}
        above = self._problem.bind(args, frozen, adapt.loc, adapt.scale).path

        def path(u, level):
            current, fixed = bound.path(u, level), above(u, level)
            pick = lambda now, then: jnp.where(level.t == 0.0, now, then)
            return jax.tree.map(pick, current, fixed)

        return path

    def sample(
        self, state: ExchangeState, model_args: tuple, model_kwargs: dict | None
    ) -> ExchangeState:
        """One draw (with vectorised chains: one per chain)."""
        kwargs = {} if model_kwargs is None else model_kwargs
        adapt = state.adapt_state
        is_single = is_prng_key(state.rng_key)
        iteration = state.i if is_single else state.i[0]
        if GIBBS_SITES in kwargs:
            in_warmup = iteration < self._num_warmup
            reference = jax.tree.map(
                lambda new, old: jnp.where(in_warmup, new, old),
                kwargs[GIBBS_SITES],
                adapt.reference,
            )
            adapt = adapt._replace(reference=reference)
        step = lambda s: self._draw(s, adapt, model_args, kwargs)
        chains = state._replace(adapt_state=None)
        if is_single:
            new, info, scores = step(chains)
            first_axis = lambda leaf: leaf[:, None]
            info, scores, draws = (
                jax.tree.map(first_axis, info),
                scores[:, None],
                jax.tree.map(lambda leaf: leaf[None], new.z),
            )
        else:
            # sweeps first, then chains
            new, info, scores = jax.vmap(step, out_axes=(0, 1, 1))(chains)
            draws = new.z
        adapt = self._adapt(adapt, iteration, info, scores, draws)
        return new._replace(adapt_state=adapt)

    def _sample_one(self, state, args, kwargs):
        return self.sample(state, args, kwargs)

    def _draw(self, state, adapt: ExchangeAdapt, args, kwargs):
        """One chain's sweeps; also what adaptation learns from, per sweep."""
        bound = self._problem.bind(args, kwargs, adapt.loc, adapt.scale)
        path = self._path(bound, adapt, args, kwargs)
        plan, settings = self._plan(adapt.settings), adapt.settings
        key, key_sweeps = jr.split(state.rng_key)
        # the draw is kept in the user's coordinates, which warm-up's scaling leaves
        position = state.replicas.at[0].set(bound.flatten(state.z))
        evaluation = evaluate_all(path, plan.levels, position)
        before = Replicas(position, evaluation, state.phase, state.round_trips)

        def body(replicas, inputs):
            noise, parity = inputs
            replicas, info = sweep(
                noise,
                replicas,
                path,
                plan,
                self._inner,
                parity,
                num_steps=self._num_inner_steps,
                exchange=self._exchange,
            )
            return replicas, (info, replicas.evaluation.score[:-1])

        num_half = 2 * self._num_sweeps
        noise = draw_sweeps(
            key_sweeps, plan, self._inner, num_half, self._num_inner_steps
        )
        inputs = (noise, jnp.arange(num_half) % 2)
        after, (info, scores) = jax.lax.scan(body, before, inputs)

        z = bound.unflatten(after.position[0])
        moved = jnp.any(after.position[0] != position[0])
        z = jax.tree.map(lambda new, old: jnp.where(moved, new, old), z, state.z)
        swap = jnp.nanmean(info.swap_accept_prob, axis=0)
        terms = bridge_terms(info.down_work, info.up_work, settings.centre)
        down, up = (jnp.nanmean(t, axis=0) for t in terms)
        is_kept = state.i >= self._num_warmup
        sums = jnp.where(is_kept, state.bridge_sums + jnp.stack([down, up]), 0.0)
        log_down, log_up = jnp.log(jnp.maximum(sums, 1e-30))
        estimate = jnp.sum(settings.centre + log_down - log_up)
        before_warmup = jnp.sum(settings.centre)
        new = state._replace(
            i=state.i + 1,
            z=z,
            potential_energy=bound.log_volume - after.evaluation.log_density[0],
            accept_prob=jnp.mean(swap),
            diverging=jnp.any(info.is_diverging),
            swap_accept_prob=swap,
            level_accept_prob=jnp.mean(info.local_accept_prob, axis=0),
            bridge_down=down,
            bridge_up=up,
            round_trips=jnp.where(is_kept, after.round_trips, 0),
            log_evidence=jnp.where(is_kept, estimate, before_warmup),
            bridge_sums=sums,
            phase=after.phase,
            replicas=after.position,
            rng_key=key,
        )
        return new, info, scores

    # -- warm-up -------------------------------------------------------------------

    def _adapt(self, adapt: ExchangeAdapt, iteration, info: SweepInfo, scores, draws):
        """``info`` and ``scores`` have leading axes (sweeps, chains)."""
        if self._num_warmup == 0:
            return adapt
        learn = lambda: self._learn(adapt, iteration, info, scores, draws)
        return jax.lax.cond(iteration < self._num_warmup, learn, lambda: adapt)

    def _learn(self, adapt: ExchangeAdapt, iteration, info, scores, draws):
        settings = adapt.settings
        # a few wild scores of a learned network must not set the scale of all
        spread = jnp.sqrt(diagonal_of(settings.curvature))
        scores = jnp.clip(scores, -10.0 * spread, 10.0 * spread)

        def add(tally, inputs):
            sweeps, states = inputs
            return add_sweep(tally, sweeps, states, settings.centre), None

        tally, _ = jax.lax.scan(add, adapt.tally, (info, scores))
        if self._step_size is None:
            steps = adapt_step_size(
                settings.steps,
                jnp.mean(info.local_accept_prob, axis=(0, 1)),
                self._target_accept_prob,
                iteration,
                self._num_warmup,
                self._inner.largest_step,
            )
            settings = settings._replace(steps=steps)
        adapt = adapt._replace(settings=settings, tally=tally)
        if self._problem.num_ordinary:
            values = jax.vmap(self._problem.ordinary_values)(draws)
            moments, _ = jax.lax.scan(
                lambda moments, value: (add_draw(moments, value), None),
                adapt.moments,
                values,
            )
            adapt = adapt._replace(moments=moments)
        ends = self._window_ends()
        if not ends:
            return adapt
        is_end = jnp.any(iteration + 1 == jnp.asarray(ends))
        return jax.lax.cond(
            is_end, lambda: self._end_window(adapt, iteration), lambda: adapt
        )

    def _window_ends(self) -> list[int]:
        ends = sorted({int(f * self._num_warmup) for f in _WINDOW_ENDS})
        return [end for end in ends if end > 1]

    def _end_window(self, adapt: ExchangeAdapt, iteration) -> ExchangeAdapt:
        may_move = self._adapt_ladder & (iteration < _LAST_MOVE * self._num_warmup)
        settings = next_settings(adapt.settings, adapt.tally, move_levels=may_move)
        loc, scale = adapt.loc, adapt.scale
        if self._problem.num_ordinary:
            new_loc, new_scale = spread_of(adapt.moments, loc, scale)
            loc = jnp.where(may_move, new_loc, loc)
            scale = jnp.where(may_move, new_scale, scale)
        return adapt._replace(
            settings=settings,
            tally=jax.tree.map(jnp.zeros_like, adapt.tally),
            loc=loc,
            scale=scale,
            moments=jax.tree.map(jnp.zeros_like, adapt.moments),
        )


def _curvature(scores: jax.Array, is_dense: bool) -> jax.Array:
    """Second moments of scores ``(K, n, dim)`` at each level, full or their diagonals."""
    diagonal = jnp.mean(jnp.square(scores), axis=1)
    if not is_dense:
        return diagonal
    # few particles see little of the off-diagonal: half of it
    full = jnp.einsum("kna,knb->kab", scores, scores) / scores.shape[1]
    return 0.5 * full + 0.5 * jax.vmap(jnp.diag)(diagonal)


def _between_variances(grid: jax.Array, hardness: jax.Array, best: jax.Array):
    """Where the parabola through the best variance and its neighbours is lowest.

    In the logarithm, the grid's steps being equal there. Two neighbours can be as good as
    each other, and 64 particles then choose the worse one of them now and again.
    """
    if len(grid) < 3:
        return grid[best]
    middle = jnp.clip(best, 1, len(grid) - 2)
    below, at, above = (hardness[middle + i] for i in (-1, 0, 1))
    bend = below - 2.0 * at + above
    step = 0.5 * (below - above) / jnp.where(bend > 0.0, bend, jnp.inf)
    step = jnp.where((middle == best) & jnp.isfinite(step), step, best - middle)
    return grid[middle] * (grid[1] / grid[0]) ** step


def _hardness(work: jax.Array) -> jax.Array:
    """Sum over the edges of the works' standard deviations.

    Not bounded: once levels have moved to equal rejection the sum is what counts, and a
    c so small that one edge holds everything must not look easy.
    """
    alive = jnp.isfinite(work)
    lowest = jnp.min(jnp.where(alive, work, jnp.inf), axis=1, keepdims=True)
    floor = jnp.where(jnp.isfinite(lowest), lowest, 0.0) - 20.0
    return jnp.sum(jnp.std(jnp.where(alive, work, floor), axis=1))
