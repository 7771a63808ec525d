# pyright: reportIncompatibleMethodOverride=false
"""The MCMC kernel behind ``RTKMALA`` and ``RTKULD``."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np

from numpyro_rtk import paths
from numpyro_rtk._checks import (
    check_fraction,
    check_non_negative_int,
    check_positive,
    check_positive_int,
)
from numpyro_rtk.core.adapt import (
    Frame,
    StepSize,
    Trials,
    adapt_step_size,
    add_draw,
    best_trial,
    no_draws,
    record_trial,
    wider_reference,
)
from numpyro_rtk.core.annealed import (
    Local,
    Plan,
    Run,
    anneal_down,
    metropolised,
    num_evals,
    num_evals_predicted,
    predict_down,
)
from numpyro_rtk.core.inner import InnerSampler
from numpyro_rtk.core.segment import Evaluation
from numpyro_rtk.kernels.base import PathKernel
from numpyro_rtk.kernels.problem import Bound
from numpyro_rtk.kernels.state import AdaptState, RTKState
from numpyro_rtk.noise import Ladder, as_ladder

__all__ = ["AnnealedKernel", "Defaults", "steps_per_segment"]

# The pilot that chooses the likelihood's variance c: a grid on the standardised scale.
_VARIANCE_GRID = np.geomspace(1e-4, 10.0, 11)
_PILOT_RUNS = 64
# Fresh runs alone favour too large a c (they do not see the modes that it misses), so the
# first half of warm-up tries the pilot's value and these many below it on the chain.
_NUM_TRIALS = 4
# Inner steps at level 0 remove the predictor's error of the energy faster when they are
# refused less (measured at 10 evaluations: .03 sd left at .94, .06 at .9 and below).
_TARGET_ACCEPT_PROB, _TARGET_AFTER_PREDICTOR = 0.8, 0.94


class Defaults(NamedTuple):
    """Options that differ between unconditional draws and posteriors."""

    num_segments: int
    num_steps: tuple[int, ...]
    ladder: Ladder = "angle"


SCORE_DEFAULTS = Defaults(num_segments=13, num_steps=(3,))
# A precise likelihood switches on at small noise, where the log ladder is the denser.
MODEL_DEFAULTS = Defaults(num_segments=24, num_steps=(1, 1), ladder="log_snr")


def steps_per_segment(
    num_steps: int | Sequence[int], num_segments: int
) -> tuple[int, ...]:
    """The kernels' ``num_steps=`` as one count per segment, lowest first.

    Args:
        num_steps: an integer for every segment alike, or a sequence from the lowest
            segment (next to the data) upwards; segments beyond its end get none.
        num_segments: K.

    Raises:
        ValueError: for negative counts, or more counts than segments.
        TypeError: for anything but integers.
    """
    if np.ndim(num_steps) == 0:
        check_non_negative_int("num_steps", num_steps)
        return (int(num_steps),) * num_segments  # type: ignore[arg-type]
    counts = list(num_steps)  # type: ignore[arg-type]
    for count in counts:
        check_non_negative_int("num_steps", count)
    if len(counts) > num_segments:
        raise ValueError(
            f"`num_steps` must have at most `num_segments` = {num_segments} entries; got "
            f"{len(counts)}."
        )
    return tuple(int(c) for c in counts) + (0,) * (num_segments - len(counts))


class AnnealedKernel(PathKernel):
    """Draws by annealed runs of reverse transition kernels, Metropolised or raw.

    Not used directly: :class:`RTKMALA` and :class:`RTKULD` choose the inner sampler.
    """

    def __init__(
        self,
        model: Callable | None,
        *,
        score: Any,
        build_inner: Callable[[], InnerSampler],
        weighted: bool,
        num_segments: int | None,
        num_steps: int | Sequence[int] | None,
        step_size: float | None,
        target_accept_prob: float | None,
        ladder: Ladder | None,
        corrected: bool | None,
        num_candidates: int,
        predictor: str | None,
        path: str | None,
        setting: str,
        forward_mode_differentiation: bool,
    ):
        super().__init__(
            model,
            score=score,
            path=path,
            build_inner=build_inner,
            forward_mode_differentiation=forward_mode_differentiation,
        )
        inner = self._inner
        is_model = self.has_likelihood
        defaults = MODEL_DEFAULTS if is_model else SCORE_DEFAULTS
        if setting == "paper":
            defaults = Defaults(5, (8,) * 5, "uniform")
        elif setting != "default":
            raise ValueError(
                f'`setting` must be "default" or "paper"; got {setting!r}.'
            )
        self._paper_start = setting == "paper"
        if num_segments is not None:
            check_positive_int("num_segments", num_segments)
        check_positive_int("num_candidates", num_candidates)
        if target_accept_prob is not None:
            check_fraction("target_accept_prob", target_accept_prob)
        if step_size is not None:
            check_positive("step_size", step_size)
        self._times = as_ladder(
            defaults.ladder if ladder is None else ladder,
            defaults.num_segments if num_segments is None else num_segments,
        )
        self._num_segments = len(self._times) - 1
        if num_segments is not None and self._num_segments != num_segments:
            raise ValueError(
                f"`ladder` must have `num_segments` + 1 = {num_segments + 1} times; got "
                f"{len(self._times)}. Give one of the two."
            )
        default_steps = defaults.num_steps[: self._num_segments]
        self._num_steps = steps_per_segment(
            default_steps if num_steps is None else num_steps, self._num_segments
        )
        self._step_size = step_size
        self._num_candidates = num_candidates
        self._corrected = (
            is_model and inner.is_adjusted if corrected is None else corrected
        )
        if self._corrected and not inner.is_adjusted:
            raise ValueError(
                "`corrected` must be False with unadjusted inner steps: their law has no "
                "density, so no Metropolis test can repair it. Pass `adjusted=True`, or "
                "accept approximate draws with `corrected=False`."
            )
        self._predictor = self._choose_predictor(predictor, setting)
        if target_accept_prob is None:
            is_predicted = self._predictor == "multistep"
            target_accept_prob = (
                _TARGET_AFTER_PREDICTOR if is_predicted else _TARGET_ACCEPT_PROB
            )
        self._target_accept_prob = target_accept_prob
        self._weighted = weighted and self._predictor == "gaussian"

    def _choose_predictor(self, predictor: str | None, setting: str) -> str:
        is_free = (
            not self.has_likelihood and not self._corrected and setting == "default"
        )
        at_zero_only = not any(self._num_steps[1:])
        if predictor is None:
            return "multistep" if is_free and at_zero_only else "gaussian"
        if predictor not in ("gaussian", "multistep"):
            raise ValueError(
                '`predictor` must be "gaussian" or "multistep" (or None for the default); '
                f"got {predictor!r}."
            )
        if predictor == "multistep" and not is_free:
            raise ValueError(
                '`predictor` must be "gaussian" with `model=`, `corrected=True` or '
                '`setting="paper"`: the deterministic predictor has no density for a '
                "weight, and knows noised densities only."
            )
        if predictor == "multistep" and not at_zero_only:
            raise ValueError(
                "`num_steps` must have steps in the lowest segment only with `predictor="
                f'"multistep"`, such as `num_steps=(3,)`; got {self._num_steps}. The '
                'steps of other segments need `predictor="gaussian"`.'
            )
        return predictor

    # -- what NumPyro and ArviZ read ------------------------------------------------

    @property
    def default_fields(self) -> tuple[str, ...]:
        """Fields collected without asking."""
        fields = ("z", "diverging", "accept_prob", "num_score_evals")
        if any(self._num_steps):
            fields += ("segment_accept_prob",)
        if self._weighted:
            fields += ("potential_energy", "log_weight")
        return fields

    @property
    def guarantee(self) -> str:
        """One sentence on what the draws are; examples and docs print it."""
        if self._corrected:
            return (
                "exact: a Metropolis-corrected Markov chain whose stationary law is the "
                "target, whatever the network learned"
            )
        if self._weighted:
            return (
                "weighted: raw annealed draws, right in expectation once weighted by "
                "exp(log_weight), biased without"
            )
        return (
            "approximate: raw annealed draws without weights, biased by the number of "
            "segments and inner steps"
        )

    def get_diagnostics_str(self, state: RTKState) -> str:
        """Shown beside the progress bar."""
        evals = self._evals_per_draw
        kind = "exact" if self._corrected else "raw"
        inner = np.asarray(state.segment_accept_prob)
        text = f"{kind}, {evals} evals/draw, acc. prob={state.mean_accept_prob:.2f}"
        if self._corrected and self._inner.is_adjusted and np.isfinite(inner).any():
            text += f", inner {np.nanmean(inner):.2f}"
        return text

    # -- the chain -----------------------------------------------------------------

    @property
    def _num_pilot(self) -> int:
        return _PILOT_RUNS * len(_VARIANCE_GRID)

    @property
    def _evals_per_draw(self) -> int:
        if self._predictor == "multistep":
            return num_evals_predicted(
                self._inner, self._num_segments, self._num_steps[0]
            )
        runs = self._num_candidates + 1 if self._corrected else 1
        return runs * num_evals(self._inner, self._num_steps)

    def _check(self) -> None:
        if self._inner.uses_energy and not self._problem.has_energy:
            raise TypeError(
                "The acceptance of this kernel needs an energy, and the density has a "
                "score only. Train an EnergyModel (`rtk.fit` without `network`), or choose "
                'an acceptance from scores: `RTKMALA(score=..., acceptance="simpson")`, '
                "or unadjusted `RTKULD`."
            )
        if self._corrected and not self._problem.has_energy:
            raise TypeError(
                "`corrected=True` needs an energy, and the density has a score only. Pass "
                "`corrected=False` for approximate draws."
            )

    def _build(self, rng_key, init_params, args, kwargs, is_single, origin):
        """Every chain with its own key; all share one fitted predictor."""
        fitted = None
        if self._predictor == "multistep":
            first = jr.fold_in(rng_key if is_single else rng_key[0], 1)
            base = self._problem.bind(args, kwargs, self._problem.frame()).base
            dim = self._problem.dim
            fitted = paths.calibrate_multistep(first, base, self._times, dim)
        one = lambda key, params: self._init_one(
            key, params, args, kwargs, origin, fitted
        )
        return (one if is_single else jax.vmap(one))(rng_key, init_params)

    def _init_one(self, key, init_params, args, kwargs, origin, fitted):
        key, key_prior, key_moment, key_pilot, key_pick = jr.split(key, 5)
        frame = Frame(*self._problem.ordinary_location(key_prior, args, kwargs), origin)
        bound = self._problem.bind(args, kwargs, frame)
        dim = self._problem.dim
        multistep, moment = fitted or (
            None,
            paths.calibrate(key_moment, bound.base, self._times, dim),
        )
        step_size = jnp.full(
            self._num_segments,
            self._first_step_size(dim) if self._step_size is None else self._step_size,
            moment.dtype,
        )
        adapt = AdaptState(
            steps=StepSize(step_size, jnp.log(step_size)),
            second_moment=moment,
            multistep=multistep,
            likelihood_variance=jnp.ones((), moment.dtype),
            trials=Trials(*jnp.zeros((3, _NUM_TRIALS), moment.dtype)),
            frame=frame,
            moments=no_draws(frame.loc),
        )
        values, run = self._pilot(key_pilot, bound, adapt)
        adapt = adapt._replace(
            likelihood_variance=values[1],
            trials=adapt.trials._replace(values=values),
        )
        usable = jnp.isfinite(run.evaluation.log_density)
        weight = jnp.where(usable, run.log_weight, -jnp.inf)
        # where every weight vanished but points have density, start at one of those
        weight = jnp.where(
            jnp.any(jnp.isfinite(weight)), weight, jnp.where(usable, 0.0, -jnp.inf)
        )
        start = run.position[jr.categorical(key_pick, weight)]
        has_start = jnp.any(usable)
        z = bound.unflatten(start)
        if init_params is not None:
            z = self._start_from(init_params, args, kwargs, z)
            given = bound.path(bound.flatten(z), self._level_zero(adapt))
            has_start = jnp.isfinite(given.log_density)
        evaluation = bound.path(bound.flatten(z), self._level_zero(adapt))
        zero = jnp.zeros((), moment.dtype)
        state = RTKState(
            i=jnp.zeros((), int),
            z=z,
            potential_energy=bound.energy(evaluation.log_density),
            accept_prob=zero,
            diverging=jnp.array(False),
            num_score_evals=jnp.asarray(self._evals_per_draw),
            segment_accept_prob=jnp.full(self._num_segments, jnp.nan, moment.dtype),
            log_weight=zero,
            mean_accept_prob=zero,
            adapt_state=adapt,
            rng_key=key,
        )
        return state, has_start

    def _first_step_size(self, dim: int) -> float:
        # the optimal scaling of MALA and short HMC falls about so with dimension
        unadjusted = 0.2 if self._predictor == "multistep" else 0.3
        scaled = 0.7 * (dim / 10.0) ** -0.25 if self._inner.is_adjusted else unadjusted
        return float(np.clip(scaled, 0.05, 1.0))

    def _plan(self, adapt: AdaptState) -> Plan:
        segments, scale = paths.plan_segments(
            self._times, adapt.second_moment, paper_start=self._paper_start
        )
        levels = paths.levels_of(self._times, adapt.likelihood_variance)
        return Plan(levels, segments, adapt.steps.current, scale)

    def _level_zero(self, adapt: AdaptState) -> paths.Levels:
        levels = paths.levels_of(self._times, adapt.likelihood_variance)
        return jax.tree.map(lambda leaf: leaf[0], levels)

    def _run(self, key: jax.Array, bound: Bound, adapt: AdaptState) -> Run:
        key_top, key_down = jr.split(key)
        top = jr.normal(key_top, (self._problem.dim,), adapt.second_moment.dtype)
        inner, steps = self._inner, self._num_steps
        if adapt.multistep is not None:
            levels = paths.levels_of(self._times, adapt.likelihood_variance)
            local = Local(
                steps[0],
                adapt.steps.current[0],
                jax.lax.rsqrt(adapt.second_moment[0]),
            )
            return predict_down(
                key_down, top, bound.path, levels, adapt.multistep, local, inner
            )
        return anneal_down(key_down, top, bound.path, self._plan(adapt), inner, steps)

    def _pilot(
        self, key: jax.Array, bound: Bound, adapt: AdaptState
    ) -> tuple[jax.Array, Run]:
        """Values of c worth trying, largest first, and the runs of the first.

        That is the grid value whose runs have the steadiest log weights.
        """

        def runs(variance):
            trial = adapt._replace(likelihood_variance=variance)
            return jax.vmap(lambda k: self._run(k, bound, trial))(
                jr.split(key, _PILOT_RUNS)
            )

        if not self.has_likelihood:
            one = adapt.likelihood_variance
            return jnp.full(_NUM_TRIALS, one), runs(one)
        grid = jnp.asarray(_VARIANCE_GRID, adapt.second_moment.dtype)
        trials = jax.lax.map(runs, grid)
        best = jnp.argmin(jax.vmap(_unsteadiness)(trials.log_weight))
        lower = jnp.maximum(best - jnp.arange(_NUM_TRIALS), 0)
        return grid[lower], jax.tree.map(lambda leaf: leaf[best], trials)

    def _frame(self, state):
        one = lambda leaf: leaf if leaf.ndim == 1 else leaf[0]
        return jax.tree.map(one, state.adapt_state.frame)

    def _sample_one(self, state: RTKState, args: tuple, kwargs: dict) -> RTKState:
        adapt = state.adapt_state
        bound = self._problem.bind(args, kwargs, adapt.frame)
        key, key_draw = jr.split(state.rng_key)
        draw = self._corrected_draw if self._corrected else self._raw_draw
        fields, position, evaluation, inner_accept = draw(
            key_draw, state.z, bound, adapt
        )
        z = bound.unflatten(position)
        if self._corrected:
            # a draw that did not move must stay what it was, to the last bit
            moved = jnp.any(position != bound.flatten(state.z))
            z = jax.tree.map(lambda new, old: jnp.where(moved, new, old), z, state.z)
        iteration = state.i + 1
        in_phase = jnp.where(
            iteration > self._num_warmup, iteration - self._num_warmup, iteration
        )
        mean = state.mean_accept_prob
        return state._replace(
            i=iteration,
            z=z,
            potential_energy=bound.energy(evaluation.log_density),
            segment_accept_prob=inner_accept,
            mean_accept_prob=mean + (fields["accept_prob"] - mean) / in_phase,
            adapt_state=self._adapt(
                adapt, state.i, inner_accept, fields["accept_prob"], z
            ),
            rng_key=key,
            **fields,
        )

    def _corrected_draw(
        self, key: jax.Array, z: Any, bound: Bound, adapt: AdaptState
    ) -> tuple[dict, jax.Array, Evaluation, jax.Array]:
        position = bound.flatten(z)
        evaluation = bound.path(position, self._level_zero(adapt))
        new = metropolised(
            key,
            position,
            evaluation,
            bound.path,
            self._plan(adapt),
            self._inner,
            self._num_steps,
            self._num_candidates,
        )
        mean_weight = jax.nn.logsumexp(new.log_weights) - np.log(self._num_candidates)
        mean_weight = mean_weight + jnp.sum(bound.log_offset)
        fields = {
            "accept_prob": new.accept_prob,
            "diverging": ~jnp.any(jnp.isfinite(new.log_weights)),
            "log_weight": mean_weight,
        }
        return (
            fields,
            new.position,
            new.evaluation,
            jnp.mean(new.down.accept_prob, axis=0),
        )

    def _raw_draw(
        self, key: jax.Array, z: Any, bound: Bound, adapt: AdaptState
    ) -> tuple[dict, jax.Array, Evaluation, jax.Array]:
        run = self._run(key, bound, adapt)
        log_weight = run.log_weight + jnp.sum(bound.log_offset)
        inner = jnp.nanmean(run.accept_prob) if any(self._num_steps) else jnp.ones(())
        fields = {
            "accept_prob": inner,
            "diverging": run.is_diverging | ~jnp.isfinite(run.evaluation.log_density),
            "log_weight": log_weight if self._weighted else jnp.zeros(()),
        }
        return fields, run.position, run.evaluation, run.accept_prob

    def _adapt(
        self,
        adapt: AdaptState,
        iteration: jax.Array,
        inner_accept: jax.Array,
        accept_prob: jax.Array,
        z: Any,
    ) -> AdaptState:
        frozen, steps = adapt, adapt.steps
        if self._step_size is None and self._inner.is_adjusted:
            steps = adapt_step_size(
                steps,
                inner_accept,
                self._target_accept_prob,
                iteration,
                self._num_warmup,
                self._inner.largest_step,
            )
        adapt = self._try_variances(adapt, iteration, accept_prob)
        moments, frame = adapt.moments, adapt.frame
        if self._problem.num_ordinary and self._corrected:
            moments = add_draw(moments, self._problem.ordinary_values(z))
            # three windows, each twice as long as the one before
            ends = jnp.asarray([(self._num_warmup * f) // 8 for f in (1, 3, 7)])
            is_end = jnp.any(iteration + 1 == ends)
            wider = wider_reference(moments, frame, self._problem.has_prior)
            frame = jax.tree.map(partial(jnp.where, is_end), wider, frame)
            moments = jax.tree.map(
                lambda m: jnp.where(is_end, jnp.zeros_like(m), m), moments
            )
        adapted = adapt._replace(steps=steps, moments=moments, frame=frame)
        in_warmup = iteration < self._num_warmup
        return jax.tree.map(
            lambda new, old: jnp.where(in_warmup, new, old), adapted, frozen
        )

    def _try_variances(
        self, adapt: AdaptState, iteration: jax.Array, accept_prob: jax.Array
    ) -> AdaptState:
        """First half of warm-up: use each value of c in turn; then keep the best."""
        last = (self._num_warmup // 2 // _NUM_TRIALS) * _NUM_TRIALS
        if not self.has_likelihood or not self._corrected or last == 0:
            return adapt
        # the very first draw is made with the value for runs without warm-up
        is_trial = (iteration > 0) & (iteration < last)
        tried = record_trial(adapt.trials, iteration % _NUM_TRIALS, accept_prob)
        trials = jax.tree.map(
            lambda new, old: jnp.where(is_trial, new, old), tried, adapt.trials
        )
        following = trials.values[(iteration + 1) % _NUM_TRIALS]
        variance = jnp.where(iteration + 1 < last, following, best_trial(trials))
        return adapt._replace(trials=trials, likelihood_variance=variance)


def _unsteadiness(log_weight: jax.Array) -> jax.Array:
    """Variance of the log weights; dead runs count as 20 nats below the least."""
    is_alive = jnp.isfinite(log_weight)
    lowest = jnp.min(jnp.where(is_alive, log_weight, jnp.inf))
    filled = jnp.where(
        is_alive, log_weight, jnp.where(jnp.isfinite(lowest), lowest, 0) - 20.0
    )
    return jnp.where(jnp.any(is_alive), jnp.var(filled), jnp.inf)
