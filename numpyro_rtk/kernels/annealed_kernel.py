# pyright: reportIncompatibleMethodOverride=false
"""The MCMC kernel behind ``RTKMALA`` and ``RTKULD``."""

from collections.abc import Callable, Sequence
from typing import Any, Self

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np

from numpyro_rtk import paths
from numpyro_rtk.core.annealed import (
    Local,
    Plan,
    Run,
    anneal_down,
    num_evals,
    num_evals_predicted,
    predict_down,
)
from numpyro_rtk.core.inner import InnerSampler, accept
from numpyro_rtk.core.metropolised import metropolised
from numpyro_rtk.core.run_noise import RunNoise
from numpyro_rtk.core.segment import Evaluation
from numpyro_rtk.core.warmup.adapt import Frame
from numpyro_rtk.core.warmup.annealed import (
    NUM_PILOT,
    AnnealedMethod,
    first_adaptation,
    learn,
    pick_start,
    pilot,
)
from numpyro_rtk.kernels.annealed_options import resolve
from numpyro_rtk.kernels.base import PathKernel
from numpyro_rtk.kernels.problem.bound import Bound
from numpyro_rtk.kernels.state import AdaptState, RTKState

__all__ = ["AnnealedKernel"]


class AnnealedKernel(PathKernel):
    """Draws by annealed runs of reverse transition kernels, Metropolised or raw.

    Not used directly: :class:`RTKMALA` and :class:`RTKULD` choose the inner sampler.
    """

    def __init__(
        self,
        model: Callable | None,
        *,
        score: Any,
        inner: InnerSampler,
        path: str | None,
        forward_mode_differentiation: bool,
        **options: Any,
    ):
        super().__init__(
            model,
            score=score,
            path=path,
            forward_mode_differentiation=forward_mode_differentiation,
        )
        self._inner = inner
        self._options = resolve(inner, self.has_likelihood, **options)
        self._paper_start = False

    @classmethod
    def as_published(
        cls,
        model: Callable | None = None,
        *,
        score: Any = None,
        inner: InnerSampler | None = None,
        num_segments: int = 5,
        num_steps: int | Sequence[int] = 8,
        **options: Any,
    ) -> Self:
        """The paper's own choices, for reproduction alone.

        They do not converge to the right weights of the modes, at any number of
        evaluations: uniform segments are far too wide near the data. Each starts its inner
        steps at a draw of N(x e^eta / 2, I / 4L), eta its length and L the largest mean
        squared score.

        Args:
            model: as of the kernel; exactly one of ``model`` and ``score`` is given.
            score: as of the kernel.
            inner: None: of ``RTKMALA`` plain MALA, ``MALA(num_leapfrog=1)``, of
                ``RTKULD`` ``ULD()``.
            num_segments: K, all of the same length.
            num_steps: inner steps per segment, as of the kernel.
            options: further ones of the kernel, but for ``ladder`` and ``predictor``.

        Raises:
            ValueError, TypeError: as the kernel.

        References:
            X. Huang et al., *Reverse Transition Kernel*, NeurIPS 2024, arXiv 2405.16387.
        """
        kernel = cls(
            model,
            score=score,
            inner=cls._published_inner() if inner is None else inner,
            num_segments=num_segments,
            num_steps=num_steps,
            ladder="uniform",
            predictor="gaussian",
            **options,
        )
        kernel._paper_start = True
        return kernel

    @classmethod
    def _published_inner(cls) -> InnerSampler:
        raise NotImplementedError

    # -- what NumPyro and ArviZ read ------------------------------------------------

    @property
    def default_fields(self) -> tuple[str, ...]:
        """Fields collected without asking."""
        fields = ("z", "diverging", "accept_prob", "num_score_evals")
        if any(self._options.num_steps):
            fields += ("segment_accept_prob",)
        if self._options.is_weighted:
            fields += ("potential_energy", "log_weight")
        return fields

    @property
    def guarantee(self) -> str:
        """One sentence on what the draws are; examples and docs print it."""
        if self._options.is_corrected:
            return (
                "exact: a Metropolis-corrected Markov chain whose stationary law is the "
                "target, whatever the network learned"
            )
        if self._options.is_weighted:
            return (
                "weighted: raw annealed draws, right in expectation once weighted by "
                "exp(log_weight), biased without"
            )
        if self.has_likelihood:
            return (
                "approximate: raw annealed draws without weights, whose bias stays for any "
                "number of segments and steps (of a datum with sd .1 a posterior sd of .31 "
                "by default, of .24 with 1,200 steps): for a score alone there is "
                "`rtk.RTKParticleGibbs`"
            )
        return (
            "approximate: raw annealed draws without weights, biased by the number of "
            "segments and inner steps"
        )

    def get_diagnostics_str(self, state: RTKState) -> str:
        """Shown beside the progress bar."""
        evals = self._evals_per_draw
        kind = "exact" if self._options.is_corrected else "raw"
        inner = np.asarray(state.segment_accept_prob)
        text = f"{kind}, {evals} evals/draw, acc. prob={state.mean_accept_prob:.2f}"
        if self._options.is_corrected and np.isfinite(inner).any():
            text += f", inner {np.nanmean(inner):.2f}"
        return text

    # -- the chain -----------------------------------------------------------------

    @property
    def _num_pilot(self) -> int:
        return NUM_PILOT

    @property
    def _method(self) -> AnnealedMethod:
        """What core needs to know of the options."""
        options = self._options
        return AnnealedMethod(
            inner=self._inner,
            num_segments=options.num_segments,
            step_size=options.step_size,
            target_accept_prob=options.target_accept_prob,
            has_likelihood=options.has_likelihood,
            is_corrected=options.is_corrected,
        )

    @property
    def _evals_per_draw(self) -> int:
        if self._options.predictor == "multistep":
            return num_evals_predicted(
                self._inner, self._options.num_segments, self._options.num_steps[0]
            )
        runs = self._options.num_candidates + 1 if self._options.is_corrected else 1
        return runs * num_evals(self._inner, self._options.num_steps)

    def _check(self) -> None:
        if self._inner.uses_energy and not self._problem.has_energy:
            raise TypeError(
                "The acceptance of this kernel needs an energy, and the density has a "
                "score only. Make it an energy (`rtk.distill`; from samples `rtk.fit` "
                "without `network`). For a posterior use `rtk.RTKParticleGibbs(model)`, "
                "for which a score suffices; to draw from the density alone "
                '`RTKMALA(score=..., inner=rtk.MALA(acceptance="simpson"))`.'
            )
        if self._options.is_corrected and not self._problem.has_energy:
            raise TypeError(
                "`corrected=True` needs an energy, and the density has a score only: use "
                "`rtk.RTKParticleGibbs(model)`, for which a score suffices, or make it an "
                "energy by `rtk.distill`."
            )

    def _build(self, rng_key, init_params, args, kwargs, is_single, origin):
        """Every chain with its own key; all share one fitted predictor."""
        fitted = None
        if self._options.predictor == "multistep":
            first = jr.fold_in(rng_key if is_single else rng_key[0], 1)
            base = self._problem.bind(args, kwargs, self._problem.frame()).base
            dim = self._problem.dim
            fitted = paths.calibrate_multistep(first, base, self._options.times, dim)
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
            paths.calibrate(
                key_moment, paths.scores_of(bound.base), self._options.times, dim
            )[0],
        )
        adapt = AdaptState(*first_adaptation(self._method, moment, multistep, frame))
        run = lambda k, c: self._run(k, bound, adapt._replace(likelihood_variance=c))
        adapt, runs = pilot(key_pilot, run, adapt, self._method)
        start, has_start = pick_start(key_pick, runs)
        z = bound.unflatten(start)
        if init_params is not None:
            z = self._start_from(init_params, args, kwargs, z)
            given = bound.at_ground(bound.flatten(z))
            has_start = jnp.isfinite(given.log_density)
        evaluation = bound.at_ground(bound.flatten(z))
        zero = jnp.zeros((), moment.dtype)
        state = RTKState(
            i=jnp.zeros((), int),
            z=z,
            potential_energy=bound.energy(evaluation.log_density),
            accept_prob=zero,
            diverging=jnp.array(False),
            num_score_evals=jnp.asarray(self._evals_per_draw),
            segment_accept_prob=jnp.full(
                self._options.num_segments, jnp.nan, moment.dtype
            ),
            log_weight=zero,
            mean_accept_prob=zero,
            adapt_state=adapt,
            rng_key=key,
        )
        return state, has_start

    def _plan(self, adapt: AdaptState) -> Plan:
        segments, scale = paths.plan_segments(
            self._options.times, adapt.second_moment, paper_start=self._paper_start
        )
        levels = paths.levels_of(self._options.times, adapt.likelihood_variance)
        return Plan(levels, segments, adapt.steps.current, scale)

    def _run(self, key: jax.Array, bound: Bound, adapt: AdaptState) -> Run:
        inner, steps = self._inner, self._options.num_steps
        if adapt.multistep is not None:
            key_top, key_down = jr.split(key)
            top = jr.normal(key_top, (self._problem.dim,), adapt.second_moment.dtype)
            levels = paths.levels_of(self._options.times, adapt.likelihood_variance)
            local = Local(
                steps[0],
                adapt.steps.current[0],
                jax.lax.rsqrt(adapt.second_moment[0]),
            )
            return predict_down(
                key_down, top, bound.path, levels, adapt.multistep, local, inner
            )
        plan = self._plan(adapt)
        noise = RunNoise.draw(key, plan.scale, inner, steps)
        return anneal_down(noise, bound.path, plan, inner, steps)

    def _sample_one(self, state: RTKState, args: tuple, kwargs: dict) -> RTKState:
        adapt = state.adapt_state
        bound = self._problem.bind(args, kwargs, adapt.frame)
        key, key_draw = jr.split(state.rng_key)
        draw = self._corrected_draw if self._options.is_corrected else self._raw_draw
        fields, position, evaluation, inner_accept = draw(
            key_draw, state.z, bound, adapt
        )
        z = bound.unflatten(position)
        if self._options.is_corrected:
            # a draw that did not move must stay what it was, to the last bit
            moved = jnp.any(position != bound.flatten(state.z))
            z = accept(moved, z, state.z)
        return state._replace(
            i=state.i + 1,
            z=z,
            potential_energy=bound.energy(evaluation.log_density),
            segment_accept_prob=inner_accept,
            mean_accept_prob=self._running(
                state, "mean_accept_prob", fields["accept_prob"]
            ),
            adapt_state=learn(
                adapt,
                self._method,
                self._num_warmup,
                state.i,
                fields["accept_prob"],
                inner_accept,
                self._problem.ordinary_values(z),
                self._problem.has_prior,
            ),
            rng_key=key,
            **fields,
        )

    def _corrected_draw(
        self, key: jax.Array, z: Any, bound: Bound, adapt: AdaptState
    ) -> tuple[dict, jax.Array, Evaluation, jax.Array]:
        position, options = bound.flatten(z), self._options
        evaluation = bound.at_ground(position)
        new = metropolised(
            key,
            position,
            evaluation,
            bound.path,
            self._plan(adapt),
            self._inner,
            options.num_steps,
            options.num_candidates,
        )
        mean_weight = jax.nn.logsumexp(new.log_weights) - np.log(options.num_candidates)
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
        run, options = self._run(key, bound, adapt), self._options
        log_weight = run.log_weight + jnp.sum(bound.log_offset)
        has_steps = any(options.num_steps)
        inner = jnp.nanmean(run.accept_prob) if has_steps else jnp.ones(())
        fields = {
            "accept_prob": inner,
            "diverging": run.is_diverging | ~jnp.isfinite(run.evaluation.log_density),
            "log_weight": log_weight if options.is_weighted else jnp.zeros(()),
        }
        return fields, run.position, run.evaluation, run.accept_prob
