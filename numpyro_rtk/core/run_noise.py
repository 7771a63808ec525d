"""Random numbers of an annealed run, for many of them in one call."""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from numpyro_rtk.core.inner import (
    InnerNoise,
    InnerSampler,
    StepNoise,
    draw_numbers,
    normal_shapes,
)

__all__ = ["RunNoise"]


class RunNoise(NamedTuple):
    """Random numbers of one run, down or up.

    Attributes:
        top: standard normals where a run down begins, ``(dim,)``.
        cross: those of the Gaussian proposals, or of the noising, ``(K, dim)``.
        steps: of the inner steps, leading axis K.
        choose: a uniform, to decide among runs.
    """

    top: jax.Array
    cross: jax.Array
    steps: InnerNoise
    choose: jax.Array

    @classmethod
    def draw(
        cls,
        key: jax.Array,
        like: jax.Array,
        inner: InnerSampler,
        num_steps: Sequence[int],
        leading: tuple[int, ...] = (),
    ) -> "RunNoise":
        """For runs ``leading`` in one call, which costs time to compile.

        Args:
            key: PRNG key.
            like: any array ``(K, dim)`` of the numbers' type.
            inner: the inner sampler.
            num_steps: K static integers, inner steps per segment, lowest segment first.
            leading: axes of runs.
        """
        (num_segments, dim), dtype = like.shape, like.dtype
        # nothing is drawn for the segments without steps; most have none
        stepping = [k for k, steps in enumerate(num_steps) if steps]
        num, most = len(stepping), max(num_steps)
        inner_shapes = [(num, *shape) for shape in normal_shapes(inner, most, dim)]
        (top, cross, start, normal), (choose, uniform) = draw_numbers(
            key,
            leading,
            [(dim,), (num_segments, dim), *inner_shapes],
            [(), (num, most)],
            dtype,
        )
        row = {k: i for i, k in enumerate(stepping)}
        index = np.array([row.get(k, num) for k in range(num_segments)])

        def spread(leaf):  # zeros where there is no step
            none = jnp.zeros((*leading, 1, *leaf.shape[len(leading) + 1 :]), dtype)
            return jnp.take(
                jnp.concatenate([leaf, none], len(leading)), index, len(leading)
            )

        steps = jax.tree.map(spread, InnerNoise(start, StepNoise(normal, uniform)))
        return cls(top, cross, steps, choose)
