# pyright: reportIncompatibleMethodOverride=false
"""RTKReplicaExchange: an exact kernel for posteriors with many modes."""

import warnings
from collections.abc import Callable
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
from numpyro_rtk.core.adapt import Frame
from numpyro_rtk.core.annealed import Path
from numpyro_rtk.core.covariance import diagonal_of
from numpyro_rtk.core.exchange import (
    Replicas,
    bridge_terms,
    draw_sweeps,
    evals_per_sweep,
    evaluate_all,
    sweep,
)
from numpyro_rtk.core.inner import InnerSampler, check_inner
from numpyro_rtk.core.ladder import LEAST_ACCEPTANCE, suggest_levels
from numpyro_rtk.core.mala import MALA
from numpyro_rtk.core.modes import JumpNoise, jump, log_shares
from numpyro_rtk.core.population import Descent
from numpyro_rtk.core.warmup import (
    NUM_PILOT,
    NUM_PILOTS,
    Adaptation,
    Method,
    Prior,
    first_adaptation,
    learn,
    plan_of,
    starts_of,
)
from numpyro_rtk.kernels.base import GIBBS_SITES, PathKernel
from numpyro_rtk.kernels.problem import Bound
from numpyro_rtk.kernels.state import lists_its_fields
from numpyro_rtk.noise import Ladder, as_ladder, noise_variance, signal

__all__ = ["ExchangeState", "RTKReplicaExchange", "Tuned"]

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


@lists_its_fields
class Tuned(NamedTuple):
    """What warm-up has tuned, as each chain sees it; ``extra_fields`` may ask for it.

    Attributes:
        step_size: local step sizes in force, ``(K,)``.
        times: of the levels, in OU time, ``(K + 1,)``.
        likelihood_variance: c of the path, on the standardised scale.
        swap_share: how often each edge tries a plain swap, ``(K,)``.
    """

    step_size: jax.Array
    times: jax.Array
    likelihood_variance: jax.Array
    swap_share: jax.Array

    @classmethod
    def of(cls, adaptation: Adaptation) -> "Tuned":
        """From all that warm-up keeps."""
        settings = adaptation.settings
        return cls(
            settings.step_size,
            settings.times,
            settings.likelihood_variance,
            settings.swap_share,
        )


@lists_its_fields
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
        jump_accept_prob: acceptance of the jump between modes.
        mode: which component of the population's mixture the draw belongs to.
        bridge_down: ``(K,)``, terms of the evidence; see :func:`rtk.log_evidence`.
        bridge_up: ``(K,)``, likewise.
        round_trips: lineages that have gone from level 0 to the top and back, since
            warm-up.
        log_evidence: running estimate of the log evidence since warm-up.
        log_offset: ``(2,)``, what the levels' log densities are counted from: added to
            ``log_evidence`` already, not to the bridge's terms. A number and what its
            rounding leaves out.
        bridge_sums: ``(2, K)``, sums of the terms since warm-up.
        phase: ``(K + 1,)``, where each replica's lineage has been.
        replicas: standardised positions of all levels, ``(K + 1, dim)``.
        adapt_state: see :class:`Tuned`.
        shared: all that warm-up learns, see ``core/warmup.py``; one for all vectorised
            chains, so it has no axis of chains.
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
    jump_accept_prob: jax.Array
    mode: jax.Array
    bridge_down: jax.Array
    bridge_up: jax.Array
    round_trips: jax.Array
    log_evidence: jax.Array
    log_offset: jax.Array
    bridge_sums: jax.Array
    phase: jax.Array
    replicas: jax.Array
    adapt_state: Tuned
    shared: Adaptation
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
        parallel tempering*, JRSS-B 2022, arXiv 1905.02939; works: A. Ballard & C.
        Jarzynski, *Replica exchange with nonequilibrium switches*, PNAS 2009.
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
            inner=inner,
            forward_mode_differentiation=forward_mode_differentiation,
        )
        if num_levels is not None:
            check_positive_int("num_levels", num_levels)
        check_positive_int("num_sweeps", num_sweeps)
        if num_particles is not None:
            check_positive_int("num_particles", num_particles)
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
            "jump_accept_prob",
            "mode",
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
            "stationary law is the target, whatever the network learned; a mode much "
            "narrower than those that the starting population found cannot be excluded "
            "(rtk.diagnose says how much, rtk.check_modes looks again)"
        )

    @property
    def num_levels(self) -> int:
        """K, the noise levels below the standard normal."""
        return self._num_levels

    @property
    def num_particles(self) -> int:
        """Particles that have gone down before the first draw, in all."""
        method = self._method
        return method.num_particles * method.num_populations(self._problem.dim)

    @property
    def uses_network(self) -> bool:
        """Whether a learned density of the target may be wrong at some noise level."""
        return self._problem.uses_network

    def num_init_evals(self, state: ExchangeState) -> int:
        """Evaluations before the first draw, pilot and population, of chains that share."""
        run = NUM_PILOT * self._num_levels * (1 + self._inner.evals_per_step)
        pilot = run * NUM_PILOTS if self.has_likelihood else 0
        return pilot + int(np.max(np.asarray(state.shared.found.num_evals)))

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
        tally = state.shared.tally
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

        Less the first chain's ``log_offset``. The first column is at the draws; 0 without
        a model. None where the model has ordinary sites, whose prior is not told apart
        from it.
        """
        if self._problem.num_ordinary:
            return None
        bound = self._problem.bind(model_args, model_kwargs, self._frame(state))
        # the same for every chain, also where each has levels of its own
        ground = paths.levels_of(jnp.zeros(()), 1.0)

        def one(u):
            total = bound.path(u, ground).log_density
            return total - bound.base(u, ground.t).log_density

        replicas = state.replicas.reshape(-1, *state.replicas.shape[-2:])
        return jax.jit(jax.vmap(jax.vmap(one)))(replicas)

    def share_further_out(self, samples: Any, args: tuple, kwargs: dict):
        """See the problem's; None where it is not known."""
        return self._problem.share_further_out(samples, args, kwargs)

    def places(self, shared: Adaptation, args: tuple, kwargs: dict) -> list[str]:
        """Where the regions of the population lie, ``"x[0] = 3.0"``, unconstrained.

        Of each the coordinate in which the regions are farthest apart.
        """
        bound = self._problem.bind(args, kwargs, shared.frame)
        centres = shared.regions.mean
        within = jnp.sqrt(jnp.mean(diagonal_of(shared.regions.covariance), axis=0))
        apart = int(jnp.argmax(jnp.ptp(centres, axis=0) / within))
        names = self._problem.coordinate_names()
        values = jax.vmap(lambda u: self._problem.flat(bound.unflatten(u)))(centres)
        return [
            f"{names[apart]} = {value:.3g}" for value in np.asarray(values[:, apart])
        ]

    # -- the chain -----------------------------------------------------------------

    @property
    def _num_pilot(self) -> int:
        return self._method.num_particles

    @property
    def num_evals(self) -> int:
        """Network evaluations of one draw of one chain."""
        # the replicas are evaluated anew before each draw: the data may be others
        pair = evals_per_sweep(self._inner, self._num_levels, self._num_inner_steps)
        return self._num_levels + 1 + self._num_sweeps * pair + 1

    def _check(self) -> None:
        if not self._problem.has_energy:
            raise TypeError(
                "RTKReplicaExchange needs an energy, and the density has a score only. "
                "Train an EnergyModel (`rtk.fit` without `network`), or use "
                "`rtk.RTKULD`, whose draws are approximate."
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

    def prepare(self, key: jax.Array, args: tuple, kwargs: dict):
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
        moment = paths.calibrate(key_moment, bound.base, self._times, self._problem.dim)
        prior = Prior(jnp.asarray(self._times, moment.dtype), moment)
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
        path = self._path(bound, shared, args, kwargs)
        replicas = starts_of(key_start, population, shared.settings)
        z = bound.unflatten(replicas[0])
        if init_params is not None:
            z = self._start_from(init_params, args, kwargs, z)
            replicas = _noised_start(key_noise, bound.flatten(z), replicas, path, plan)
        evaluation = evaluate_all(path, plan.levels, replicas)
        has_start = jnp.isfinite(evaluation.log_density[0])
        dtype, num_levels = replicas.dtype, self._num_levels
        nothing, zero = jnp.zeros(num_levels, dtype), jnp.zeros((), dtype)
        state = ExchangeState(
            i=jnp.zeros((), int),
            z=z,
            potential_energy=bound.energy(evaluation.log_density[0]),
            accept_prob=zero,
            diverging=jnp.array(False),
            num_score_evals=jnp.asarray(self.num_evals),
            swap_accept_prob=nothing,
            level_accept_prob=nothing,
            jump_accept_prob=zero,
            mode=jnp.zeros((), int),
            bridge_down=nothing,
            bridge_up=nothing,
            round_trips=jnp.zeros((), int),
            log_evidence=jnp.sum(shared.settings.centre) + jnp.sum(bound.log_offset),
            log_offset=bound.log_offset,
            bridge_sums=jnp.zeros((2, num_levels), dtype),
            phase=jnp.zeros(num_levels + 1, int).at[0].set(1),
            replicas=replicas,
            adapt_state=Tuned.of(shared),
            shared=None,  # type: ignore[arg-type]
            rng_key=key,
        )
        return state, has_start

    def _plan(self, shared: Adaptation):
        return plan_of(shared.settings, paths.levels_of)

    def _path(self, bound: Bound, adapt: Adaptation, args, kwargs) -> Path:
        """The path; in a Gibbs block only level 0 follows the other blocks.

        The levels above stay bound to values of theirs that are frozen after warm-up:
        were they to follow, their replicas would no longer be draws of their targets.
        """
        if GIBBS_SITES not in kwargs:
            return bound.path
        frozen = {**kwargs, GIBBS_SITES: adapt.reference}
        above = self._problem.bind(args, frozen, adapt.frame).path

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
        shared = state.shared
        is_single = is_prng_key(state.rng_key)
        iteration = state.i if is_single else state.i[0]
        if GIBBS_SITES in kwargs:
            in_warmup = iteration < self._num_warmup
            reference = jax.tree.map(
                lambda new, old: jnp.where(in_warmup, new, old),
                kwargs[GIBBS_SITES],
                shared.reference,
            )
            shared = shared._replace(reference=reference)
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

    def _frame(self, state):
        # sequential chains have one each, and the driver stacks them in the end
        is_stacked = state.shared.frame.origin.ndim > 1
        one = lambda leaf: leaf[0] if is_stacked else leaf
        return jax.tree.map(one, state.shared.frame)

    def _sample_one(self, state, args, kwargs):
        return self.sample(state, args, kwargs)

    def _draw(self, state, adapt: Adaptation, args, kwargs):
        """One chain's sweeps; also what adaptation learns from, per sweep."""
        bound = self._problem.bind(args, kwargs, adapt.frame)
        path = self._path(bound, adapt, args, kwargs)
        plan, settings = self._plan(adapt), adapt.settings
        key, key_sweeps, key_jump = jr.split(state.rng_key, 3)
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
            )
            return replicas, (info, replicas.evaluation.score[:-1])

        num_half = 2 * self._num_sweeps
        noise = draw_sweeps(
            key_sweeps, plan, self._inner, num_half, self._num_inner_steps
        )
        inputs = (noise, jnp.arange(num_half) % 2)
        after, (info, scores) = jax.lax.scan(body, before, inputs)
        after, jump_accept = _jump(key_jump, after, path, plan, adapt.modes)
        region = jnp.argmax(log_shares(adapt.regions, after.position[:1])[0])
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
            potential_energy=bound.energy(after.evaluation.log_density[0]),
            accept_prob=jnp.mean(swap),
            diverging=jnp.any(info.is_diverging)
            | ~jnp.isfinite(after.evaluation.log_density[0]),
            swap_accept_prob=swap,
            level_accept_prob=jnp.mean(info.local_accept_prob, axis=0),
            jump_accept_prob=jump_accept,
            mode=region,
            bridge_down=down,
            bridge_up=up,
            round_trips=jnp.where(is_kept, after.round_trips, 0),
            log_evidence=jnp.where(is_kept, estimate, before_warmup)
            + jnp.sum(bound.log_offset),
            log_offset=bound.log_offset,
            bridge_sums=sums,
            phase=after.phase,
            replicas=after.position,
            rng_key=key,
        )
        return new, info, scores


def _jump(key, replicas: Replicas, path: Path, plan, modes):
    """One jump at level 0, and its acceptance."""
    ground = jax.tree.map(lambda leaf: leaf[0], (plan.levels, replicas.evaluation))
    position, evaluation, accept_prob = jump(
        JumpNoise.draw(key, modes),
        replicas.position[0],
        ground[1],
        path,
        ground[0],
        modes,
    )
    put = lambda all_levels, one: all_levels.at[0].set(one)
    after = replicas._replace(
        position=put(replicas.position, position),
        evaluation=jax.tree.map(put, replicas.evaluation, evaluation),
    )
    return after, accept_prob


def _noised_start(key, start, replicas, path: Path, plan):
    """The user's start at level 0, and with each level's noise above it.

    Where that has no density the population's particle stays.
    """
    t = plan.levels.t[:, None]
    noise = jr.normal(key, replicas.shape, replicas.dtype).at[0].set(0.0)
    noised = signal(t) * start + jnp.sqrt(noise_variance(t)) * noise
    usable = jnp.isfinite(evaluate_all(path, plan.levels, noised).log_density)
    return jnp.where(usable.at[0].set(True)[:, None], noised, replicas)
