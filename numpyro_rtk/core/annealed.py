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
constant is short of those paths; the Metropolised transition stays exact.)

*Up*: from a draw :math:`x_0`, noise it level by level and undo the inner steps (they
are reversible), which gives the weight of a path that ends in :math:`x_0`.

*Metropolised*: among P fresh paths pick one in proportion to its weight, and accept it
with :math:`\min(1, \sum_j w_j / (\sum_j w_j - w_i + w_0))`, where :math:`w_0` is the
current draw's own weight from the upward pass. It leaves :math:`\pi_0` invariant for
any path and any P; a poor path costs acceptance, never correctness.
"""

from collections.abc import Callable, Sequence
from itertools import groupby
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import jax.random as jr

from numpyro_rtk.core.inner import InnerSampler
from numpyro_rtk.core.segment import (
    DensityFn,
    Evaluation,
    Segment,
    log_noising,
    log_start,
    reverse_kernel,
    sample_noising,
    sample_start,
    start_mean,
    with_noising,
    without_noising,
)

__all__ = [
    "Path",
    "Plan",
    "Run",
    "Transition",
    "anneal_down",
    "anneal_up",
    "log_reference",
    "metropolised",
    "num_evals",
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


class Run(NamedTuple):
    """One run, down or up.

    Attributes:
        position: the end: level 0 after a run down, level K after a run up.
        evaluation: the path's evaluation there.
        log_weight: of the whole path, a scalar; never NaN. A run down that ends without
            density has -inf; a run up that no run down can retrace has +inf.
        accept_prob: ``(K,)``, mean over a segment's inner steps, NaN where it has none.
        is_diverging: whether any inner step diverged.
        start_residual: ``(K, dim)``, squared distance of the segment's lower state from
            the start's mean; its mean is the best start variance.
        score: ``(K, dim)``, the score at each segment's upper state.
    """

    position: jax.Array
    evaluation: Evaluation
    log_weight: jax.Array
    accept_prob: jax.Array
    is_diverging: jax.Array
    start_residual: jax.Array
    score: jax.Array


class Transition(NamedTuple):
    """One Metropolised transition: the new draw, its probability, and the runs."""

    position: jax.Array
    evaluation: Evaluation
    accept_prob: jax.Array
    log_weights: jax.Array
    current_log_weight: jax.Array
    down: Run
    up: Run


def log_reference(x: jax.Array) -> jax.Array:
    """``log N(x; 0, I)``, a scalar."""
    return -0.5 * (jnp.sum(jnp.square(x)) + x.size * _LOG_2PI)


def num_evals(inner: InnerSampler, num_steps: Sequence[int]) -> int:
    """Evaluations of the path in one run: ``1 + K + steps * evals_per_step``.

    The score at the end of a segment is the start score of the next and counts once.
    """
    return 1 + len(num_steps) + inner.evals_per_step * sum(num_steps)


def anneal_down(
    key: jax.Array,
    top: jax.Array,
    path: Path,
    plan: Plan,
    inner: InnerSampler,
    num_steps: Sequence[int],
) -> Run:
    """Run from a draw of the reference at level K down to level 0.

    Args:
        key: PRNG key.
        top: ``(dim,)``, a draw from N(0, I).
        path: the intermediate targets.
        plan: levels, segments, step sizes and scales.
        inner: the inner sampler; the log weight means what the module says only when
            it is adjusted and exact.
        num_steps: K static integers, inner steps per segment, lowest segment first.
    """

    def descend(steps: int):
        def body(carry, inputs):
            x, upper, log_weight = carry
            key, low, segment, step_size, scale = inputs
            key_start, key_inner = jr.split(key)
            start = sample_start(key_start, segment, x, upper.score)
            at_start = path(start, low)
            z, lower, info = _inner_steps(
                key_inner,
                segment,
                x,
                start,
                at_start,
                low,
                path,
                inner,
                steps,
                step_size,
                scale,
            )
            log_weight = log_weight + _start_ratio(segment, x, start, upper)
            log_weight = log_weight + _steps_ratio(at_start, lower)
            outputs = (*info, _residual(segment, x, z, upper), upper.score)
            return (z, lower, log_weight), outputs

        return body

    evaluation = path(top, _slice(plan.levels, -1))
    carry = (top, evaluation, -log_reference(top))
    xs = (_keys(key, num_steps), _slice(plan.levels, slice(None, -1)), *plan[1:])
    carry, outputs = _scan_groups(descend, carry, xs, num_steps, reverse=True)
    bottom, evaluation, log_weight = carry
    log_weight = _if_nan(log_weight + evaluation.log_density, -jnp.inf)
    return Run(bottom, evaluation, log_weight, *_collect(outputs))


def anneal_up(
    key: jax.Array,
    bottom: jax.Array,
    evaluation: Evaluation,
    path: Path,
    plan: Plan,
    inner: InnerSampler,
    num_steps: Sequence[int],
) -> Run:
    """Run from a draw of level 0 up: the reversal of :func:`anneal_down`.

    Args:
        key: PRNG key.
        bottom: ``(dim,)``, the draw.
        evaluation: the path's evaluation at it, level 0.
        path: as in :func:`anneal_down`, like the rest.
        plan: see there.
        inner: see there; must be adjusted, since its steps are undone by themselves.
        num_steps: see there.
    """

    def ascend(steps: int):
        def body(carry, inputs):
            z, lower, log_weight = carry
            key, (low, high), segment, step_size, scale = inputs
            key_noise, key_inner = jr.split(key)
            x = sample_noising(key_noise, segment, z)
            start, at_start, info = _inner_steps(
                key_inner,
                segment,
                x,
                z,
                lower,
                low,
                path,
                inner,
                steps,
                step_size,
                scale,
            )
            upper = path(x, high)
            log_weight = log_weight + _start_ratio(segment, x, start, upper)
            log_weight = log_weight + _steps_ratio(at_start, lower)
            outputs = (*info, _residual(segment, x, z, upper), upper.score)
            return (x, upper, log_weight), outputs

        return body

    levels = (_slice(plan.levels, slice(None, -1)), _slice(plan.levels, slice(1, None)))
    carry = (bottom, evaluation, jnp.zeros((), bottom.dtype))
    xs = (_keys(key, num_steps), levels, *plan[1:])
    carry, outputs = _scan_groups(ascend, carry, xs, num_steps, reverse=False)
    top, upper, log_weight = carry
    # What no run down can retrace is never left for one (+inf); a draw without density
    # is left for anything (-inf).
    log_weight = _if_nan(log_weight - log_reference(top), jnp.inf)
    log_weight = _if_nan(log_weight + evaluation.log_density, -jnp.inf)
    return Run(top, upper, log_weight, *_collect(outputs))


def metropolised(
    key: jax.Array,
    position: jax.Array,
    evaluation: Evaluation,
    path: Path,
    plan: Plan,
    inner: InnerSampler,
    num_steps: Sequence[int],
    num_candidates: int,
) -> Transition:
    """One exact transition for level 0 by fresh annealed runs.

    Args:
        key: PRNG key.
        position: the current draw, ``(dim,)``.
        evaluation: the path's evaluation at it, level 0.
        path: as in :func:`anneal_down`, like ``plan``, ``inner`` and ``num_steps``.
        plan: see there.
        inner: see there; must be adjusted.
        num_steps: see there.
        num_candidates: P, fresh runs per transition.
    """
    key_up, key_top, key_down, key_choose, key_accept = jr.split(key, 5)
    up = anneal_up(key_up, position, evaluation, path, plan, inner, num_steps)
    tops = jr.normal(key_top, (num_candidates, *position.shape), position.dtype)
    keys = jr.split(key_down, num_candidates)
    down = jax.vmap(lambda k, x: anneal_down(k, x, path, plan, inner, num_steps))(
        keys, tops
    )
    chosen = jr.categorical(key_choose, down.log_weight)
    log_accept = _log_accept(down.log_weight, chosen, up.log_weight)
    accept_prob = jnp.exp(jnp.minimum(log_accept, 0.0))
    is_accepted = jr.uniform(key_accept, (), position.dtype) < accept_prob

    def pick(new, old):
        return jnp.where(is_accepted, new[chosen], old)

    new_position, new_evaluation = jax.tree.map(
        pick, (down.position, down.evaluation), (position, evaluation)
    )
    return Transition(
        position=new_position,
        evaluation=new_evaluation,
        accept_prob=accept_prob,
        log_weights=down.log_weight,
        current_log_weight=up.log_weight,
        down=down,
        up=up,
    )


def _log_accept(
    log_weights: jax.Array, chosen: jax.Array, current: jax.Array
) -> jax.Array:
    """``log(sum_j w_j / (sum_j w_j - w_i + w_0))``; -inf when every candidate died."""
    others = log_weights.at[chosen].set(current)
    total = jax.nn.logsumexp(log_weights)
    ratio = total - jax.nn.logsumexp(others)
    return jnp.where(jnp.isneginf(total), -jnp.inf, ratio)


def _start_ratio(
    segment: Segment, x: jax.Array, start: jax.Array, upper: Evaluation
) -> jax.Array:
    """``log N(x; a z_0, v) - log q(z_0 | x)``."""
    return log_noising(segment, x, start) - log_start(segment, start, x, upper.score)


def _steps_ratio(at_start: Evaluation, lower: Evaluation) -> jax.Array:
    """``log pi(z_0) - log pi(z)`` over a segment's inner steps.

    Two points without density are the same point, since no step leads from one to
    another: their ratio is one.
    """
    start, end = at_start.log_density, lower.log_density
    return jnp.where(jnp.isneginf(start) & jnp.isneginf(end), 0.0, start - end)


def _residual(
    segment: Segment, x: jax.Array, z: jax.Array, upper: Evaluation
) -> jax.Array:
    return jnp.square(z - start_mean(segment, x, upper.score))


def _inner_steps(
    key: jax.Array,
    segment: Segment,
    x: jax.Array,
    z: jax.Array,
    lower: Evaluation,
    level: Any,
    path: Path,
    inner: InnerSampler,
    steps: int,
    step_size: jax.Array,
    scale: jax.Array,
):
    """``steps`` inner steps on the reverse kernel of ``z`` given ``x``."""
    if steps == 0:
        nothing = jnp.full((), jnp.nan, z.dtype)
        return z, lower, (nothing, jnp.array(False))

    lower_fn: DensityFn = lambda position: path(position, level)
    target = reverse_kernel(segment, x, lower_fn)

    def body(state, key):
        state, info = inner.step(key, state, target, step_size, scale)
        return state, (info.accept_prob, info.is_diverging)

    key_init, key_steps = jr.split(key)
    state = inner.init(key_init, z, with_noising(segment, x, z, lower))
    keys = jr.split(key_steps, steps)
    if steps == 1:
        state, (accept_prob, is_diverging) = body(state, keys[0])
    else:
        state, (accept_prob, is_diverging) = jax.lax.scan(body, state, keys)
    lower = without_noising(segment, x, state.position, state.evaluation)
    return state.position, lower, (jnp.mean(accept_prob), jnp.any(is_diverging))


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


def _collect(outputs):
    accept_prob, is_diverging, residual, score = outputs
    return accept_prob, jnp.any(is_diverging), residual, score


def _keys(key: jax.Array, num_steps: Sequence[int]) -> jax.Array:
    return jr.split(key, len(num_steps))


def _slice(tree: Any, index: Any) -> Any:
    return jax.tree.map(lambda leaf: leaf[index], tree)


def _if_nan(value: jax.Array, replacement: float) -> jax.Array:
    return jnp.where(jnp.isnan(value), replacement, value)
