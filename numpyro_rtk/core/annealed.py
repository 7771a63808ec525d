r"""A run down the ladder, with its weight, and the same run backwards.

*Down* (algorithm 1 of the RTK paper, arXiv 2405.16387): from :math:`x_K \sim N(0, I)`
each segment draws :math:`z_0` from its Gaussian start and then takes inner steps on the
reverse transition kernel, which end in :math:`x_{k-1}`. With adjusted steps

.. math:: \log w = \log\frac{\pi_0(x_0)}{N(x_K)} + \sum_k \log
          \frac{N(x_k; a z_0, v)\,\pi_{k-1}(z_0)}{q(z_0 \mid x_k)\,\pi_{k-1}(x_{k-1})}

makes ``exp(log w)`` an unbiased estimate of the last level's normalising constant, and
weighted end points correct draws of it (annealed importance sampling, Neal 2001, on the
noised chain): the steps leave the extended target invariant and add nothing. Where a
segment has no inner steps, :math:`x_{k-1} = z_0` and the intermediate densities cancel:
a path may cross a region where an intermediate level has no density. (Where a segment
has inner steps, no run comes down through such a region, and the estimate of the
constant is short of those paths; the Metropolised transition of ``metropolised.py``
stays exact.)

*Up*: from a draw :math:`x_0`, noise it level by level and undo the inner steps (they
are reversible), which gives the weight of a path that ends in :math:`x_0`.

*Predicted*: without a weight, a deterministic rule of higher order crosses the ladder, and
inner steps at its end target level 0 itself.
"""

from collections.abc import Callable, Sequence
from itertools import groupby
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from numpyro_rtk.core.inner import InnerNoise, InnerSampler, draw_noise, take_steps
from numpyro_rtk.core.multistep import Multistep, clean_mean, predict, remember
from numpyro_rtk.core.run_noise import RunNoise
from numpyro_rtk.core.segment import (
    DensityFn,
    Evaluation,
    Segment,
    log_volume_ratio,
    noising_misfit,
    proposal_misfit,
    reverse_kernel,
    sample_noising,
    sample_proposal,
    with_noising,
    without_noising,
)

__all__ = [
    "Local",
    "Path",
    "Plan",
    "Run",
    "anneal_down",
    "anneal_up",
    "inner_steps",
    "log_reference",
    "num_evals",
    "num_evals_predicted",
    "predict_down",
]

_LOG_2PI = 1.8378770664093453

Path = Callable[[jax.Array, Any], Evaluation]
"""``(position (dim,), level) -> Evaluation``; a level is a slice of ``Plan.levels``."""


class Plan(NamedTuple):
    """What a run needs besides the path; arrays, so that adapting it costs no retrace.

    Attributes:
        levels: pytree with leading axis K + 1, level 0 first; handed to the path.
        segments: :class:`Segment` with leading axis K.
        step_size: ``(K,)``, dimensionless.
        scale: ``(K, dim)``, the spread of each reverse kernel.
    """

    levels: Any
    segments: Segment
    step_size: jax.Array
    scale: jax.Array


class Local(NamedTuple):
    """Inner steps on a level itself: how many (static), step size, spread ``(dim,)``."""

    num_steps: int
    step_size: jax.Array
    scale: jax.Array


class Run(NamedTuple):
    """One run, down or up.

    Attributes:
        position: the end: level 0 after a run down, level K after a run up.
        evaluation: the path's evaluation there.
        log_weight: of the whole path, a scalar; never NaN. A run down that ends without
            density has -inf; a run up that no run down can retrace has +inf.
        accept_prob: ``(K,)``, mean over a segment's inner steps, NaN where it has none.
        is_diverging: whether any inner step diverged.
    """

    position: jax.Array
    evaluation: Evaluation
    log_weight: jax.Array
    accept_prob: jax.Array
    is_diverging: jax.Array


def log_reference(x: jax.Array) -> jax.Array:
    """``log N(x; 0, I)``, a scalar."""
    return -0.5 * (jnp.sum(jnp.square(x)) + x.size * _LOG_2PI)


def num_evals(inner: InnerSampler, num_steps: Sequence[int]) -> int:
    """Evaluations of the path in one run: ``1 + K + steps * evals_per_step``.

    The score at the end of a segment is the start score of the next and counts once.
    """
    return 1 + len(num_steps) + inner.evals_per_step * sum(num_steps)


def num_evals_predicted(inner: InnerSampler, num_segments: int, num_steps: int) -> int:
    """The same of :func:`predict_down`: ``K``, and with steps one more and their own."""
    return num_segments + (1 + inner.evals_per_step * num_steps if num_steps else 0)


def anneal_down(
    noise: RunNoise,
    path: Path,
    plan: Plan,
    inner: InnerSampler,
    num_steps: Sequence[int],
) -> Run:
    """Run from a draw of the reference at level K down to level 0.

    Args:
        noise: of one run; its ``top`` is the draw of the reference.
        path: the intermediate targets.
        plan: levels, segments, step sizes and scales.
        inner: the inner sampler; the log weight means what the module says only when
            it is adjusted and exact.
        num_steps: K static integers, inner steps per segment, lowest segment first.
    """
    top = noise.top
    evaluation = path(top, _slice(plan.levels, -1))
    carry = (top, evaluation, -log_reference(top))
    carry, info = _descend(noise, carry, path, plan, inner, num_steps)
    bottom, evaluation, log_weight = carry
    log_weight = _if_nan(log_weight + evaluation.log_density, -jnp.inf)
    return Run(bottom, evaluation, log_weight, *_collect(info))


def predict_down(
    key: jax.Array,
    top: jax.Array,
    path: Path,
    levels: Any,
    multistep: Multistep,
    local: Local,
    inner: InnerSampler,
) -> Run:
    """From a draw of the reference to level 0 by a deterministic rule, without a weight.

    The rule of ``multistep.py`` crosses every segment; what local error it leaves, inner
    steps remove, which target level 0 itself (no reverse kernel: the rule has spent the
    noise that one would be conditioned on). For the path of a noising process only: the
    rule reads the scores as those of one.

    Args:
        key: PRNG key.
        top: ``(dim,)``, a draw from N(0, I).
        path: the intermediate targets.
        levels: as in :class:`Plan`.
        multistep: the rule's coefficients, leading axis K.
        local: how many inner steps at level 0, and how long.
        inner: the inner sampler.

    Returns:
        The run. Its ``log_weight`` is 0; without inner steps level 0 is not evaluated, and
        the log density and the score are 0 there as well.
    """

    def body(carry, inputs):
        x, cleans = carry
        step, level = inputs
        cleans = remember(cleans, clean_mean(step, x, path(x, level).score))
        return (predict(step, x, cleans), cleans), None

    num_segments = len(multistep.keep)
    cleans = jnp.zeros((num_segments, *top.shape), top.dtype)
    inputs = (multistep, _slice(levels, slice(1, None)))
    (x, _), _ = jax.lax.scan(body, (top, cleans), inputs, reverse=True)
    accept_prob = jnp.full(num_segments, jnp.nan, x.dtype)
    zero = jnp.zeros((), x.dtype)
    if local.num_steps == 0:
        unknown = Evaluation(zero, jnp.zeros_like(x))
        return Run(x, unknown, zero, accept_prob, ~jnp.all(jnp.isfinite(x)))
    target: DensityFn = lambda position: path(position, _slice(levels, 0))
    noise = draw_noise(key, inner, (), local.num_steps, x.size, x.dtype)
    state, info = take_steps(noise, x, target(x), target, inner, *local)
    accept_prob = accept_prob.at[0].set(info[0])
    return Run(state.position, state.evaluation, zero, accept_prob, info[1])


def _descend(noise: RunNoise, carry, path, plan, inner, num_steps):
    """Gaussian starts and inner steps down the plan, from its highest level.

    ``carry`` holds position, evaluation and log weight there, and at the end those of
    level 0.
    """

    def build(steps: int):
        def body(carry, inputs):
            x, upper, log_weight = carry
            steps_noise, cross, low, *settings = inputs
            segment = settings[0]
            start = sample_proposal(segment, x, upper.score, cross)
            at_start = path(start, low)
            z, lower, info = inner_steps(
                steps_noise, x, start, at_start, low, settings, path, inner, steps
            )
            log_weight = log_weight - noising_misfit(segment, x, start)
            log_weight = log_weight + _steps_ratio(at_start, lower)
            return (z, lower, log_weight), info

        return body

    x, upper, log_weight = carry
    # log N(x_k; a z_0, v) - log q(z_0 | x_k) over all segments, but for the first's
    # distances: in a start's own units its draw is the noise
    log_weight = log_weight + jnp.sum(log_volume_ratio(plan.segments))
    log_weight = log_weight + 0.5 * jnp.sum(jnp.square(noise.cross))
    xs = (noise.steps, noise.cross, _slice(plan.levels, slice(None, -1)), *plan[1:])
    return _scan_groups(build, (x, upper, log_weight), xs, num_steps, reverse=True)


def anneal_up(
    noise: RunNoise,
    bottom: jax.Array,
    evaluation: Evaluation,
    path: Path,
    plan: Plan,
    inner: InnerSampler,
    num_steps: Sequence[int],
) -> Run:
    """Run from a draw of level 0 up: the reversal of :func:`anneal_down`.

    Args:
        noise: of one run.
        bottom: ``(dim,)``, the draw.
        evaluation: the path's evaluation at it, level 0.
        path: the intermediate targets.
        plan: levels, segments, step sizes and scales.
        inner: the inner sampler; adjusted, since its steps are undone by themselves.
        num_steps: K static integers, inner steps per segment, lowest segment first.
    """

    def ascend(steps: int):
        def body(carry, inputs):
            z, lower, log_weight = carry
            steps_noise, cross, (low, high), *settings = inputs
            segment = settings[0]
            x = sample_noising(segment, z, cross)
            start, at_start, info = inner_steps(
                steps_noise, x, z, lower, low, settings, path, inner, steps
            )
            upper = path(x, high)
            log_weight = log_weight - noising_misfit(segment, x, start)
            log_weight = log_weight + proposal_misfit(segment, start, x, upper.score)
            log_weight = log_weight + _steps_ratio(at_start, lower)
            return (x, upper, log_weight), info

        return body

    levels = (_slice(plan.levels, slice(None, -1)), _slice(plan.levels, slice(1, None)))
    carry = (bottom, evaluation, jnp.sum(log_volume_ratio(plan.segments)))
    xs = (noise.steps, noise.cross, levels, *plan[1:])
    carry, info = _scan_groups(ascend, carry, xs, num_steps, reverse=False)
    top, upper, log_weight = carry
    # What no run down can retrace is never left for one (+inf); a draw without density
    # is left for anything (-inf).
    log_weight = _if_nan(log_weight - log_reference(top), jnp.inf)
    log_weight = _if_nan(log_weight + evaluation.log_density, -jnp.inf)
    return Run(top, upper, log_weight, *_collect(info))


def _steps_ratio(at_start: Evaluation, lower: Evaluation) -> jax.Array:
    """``log pi(z_0) - log pi(z)`` over a segment's inner steps.

    Two points without density are the same point, since no step leads from one to
    another: their ratio is one.
    """
    start, end = at_start.log_density, lower.log_density
    return jnp.where(jnp.isneginf(start) & jnp.isneginf(end), 0.0, start - end)


def inner_steps(
    noise: InnerNoise,
    x: jax.Array,
    z: jax.Array,
    lower: Evaluation,
    level: Any,
    settings: Sequence[Any],
    path: Path,
    inner: InnerSampler,
    steps: int,
):
    """``steps`` inner steps on the reverse kernel of ``z`` given ``x``.

    ``settings`` are the plan's segment (of which the noising alone is read), step size
    and scale here; ``noise`` is for as many steps or more.
    """
    segment, step_size, scale = settings
    if steps == 0:
        nothing = jnp.full((), jnp.nan, z.dtype)
        return z, lower, (nothing, jnp.array(False))

    lower_fn: DensityFn = lambda position: path(position, level)
    target = reverse_kernel(segment, x, lower_fn)

    at_z = with_noising(segment, x, z, lower)
    state, info = take_steps(noise, z, at_z, target, inner, steps, step_size, scale)
    lower = without_noising(segment, x, state.position, state.evaluation)
    return state.position, lower, info


def _scan_groups(build_body, carry, xs, num_steps: Sequence[int], *, reverse: bool):
    """Scan over the segments, one scan for each run of equal ``num_steps``.

    Scan needs one program for all its iterations, and unequal step counts are static:
    grouping compiles as few programs as there are different counts in a row.
    """
    groups, start = [], 0
    for steps, members in groupby(num_steps):
        stop = start + len(list(members))
        groups.append((steps, start, stop))
        start = stop
    collected = []
    for steps, start, stop in reversed(groups) if reverse else groups:
        part = _slice(xs, slice(start, stop))
        carry, outputs = jax.lax.scan(build_body(steps), carry, part, reverse=reverse)
        collected.append(outputs)
    if reverse:
        collected.reverse()
    return carry, jax.tree.map(lambda *parts: jnp.concatenate(parts), *collected)


def _collect(info):
    accept_prob, is_diverging = info
    return accept_prob, jnp.any(is_diverging)


def _slice(tree: Any, index: Any) -> Any:
    return jax.tree.map(lambda leaf: leaf[index], tree)


def _if_nan(value: jax.Array, replacement: float) -> jax.Array:
    return jnp.where(jnp.isnan(value), replacement, value)
