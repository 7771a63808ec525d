r"""The exact transition of level 0 that is made of annealed runs.

Among P fresh runs down (``annealed.py``) pick one in proportion to its weight, and accept
it with :math:`\min(1, \sum_j w_j / (\sum_j w_j - w_i + w_0))`, where :math:`w_0` is the
current draw's own weight from the upward pass. It leaves :math:`\pi_0` invariant for
any path and any P; a poor path costs acceptance, never correctness.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from numpyro_rtk.core.annealed import Path, Plan, Run, anneal_down, anneal_up
from numpyro_rtk.core.inner import InnerSampler
from numpyro_rtk.core.run_noise import RunNoise
from numpyro_rtk.core.segment import Evaluation

__all__ = ["Transition", "metropolised"]


class Transition(NamedTuple):
    """One Metropolised transition: the new draw, its probability, and the runs."""

    position: jax.Array
    evaluation: Evaluation
    accept_prob: jax.Array
    log_weights: jax.Array
    current_log_weight: jax.Array
    down: Run
    up: Run


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
        path: the intermediate targets.
        plan: levels, segments, step sizes and scales.
        inner: the inner sampler; must be adjusted.
        num_steps: K static integers, inner steps per segment, lowest segment first.
        num_candidates: P, fresh runs per transition.
    """
    noise = RunNoise.draw(key, plan.scale, inner, num_steps, (num_candidates + 1,))
    of_up, of_down = (
        jax.tree.map(lambda leaf, i=i: leaf[i], noise) for i in (0, slice(1, None))
    )
    up = anneal_up(of_up, position, evaluation, path, plan, inner, num_steps)
    down = jax.vmap(lambda one: anneal_down(one, path, plan, inner, num_steps))(of_down)
    chosen = _choose(of_down.choose, down.log_weight)
    log_accept = _log_accept(down.log_weight, chosen, up.log_weight)
    accept_prob = jnp.exp(jnp.minimum(log_accept, 0.0))
    is_accepted = of_up.choose < accept_prob

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


def _choose(uniform: jax.Array, log_weights: jax.Array) -> jax.Array:
    """An index in proportion to its weight, by the Gumbel maximum of uniforms ``(P,)``."""
    tiny = jnp.finfo(uniform.dtype).tiny
    return jnp.argmax(log_weights - jnp.log(-jnp.log(jnp.maximum(uniform, tiny))))


def _log_accept(
    log_weights: jax.Array, chosen: jax.Array, current: jax.Array
) -> jax.Array:
    """``log(sum_j w_j / (sum_j w_j - w_i + w_0))``; -inf when every candidate died."""
    others = log_weights.at[chosen].set(current)
    total = jax.nn.logsumexp(log_weights)
    ratio = total - jax.nn.logsumexp(others)
    return jnp.where(jnp.isneginf(total), -jnp.inf, ratio)
