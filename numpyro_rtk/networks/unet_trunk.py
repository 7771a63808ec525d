"""The U-Net that the energy and the score networks for images share."""

import math

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr

from numpyro_rtk._checks import check_positive_int
from numpyro_rtk.networks.features import NUM_NOISE_FEATURES, noise_features
from numpyro_rtk.networks.shapes import as_event_shape

__all__ = ["UNetTrunk", "as_image_shape"]


def as_image_shape(event_shape: object, depth: int) -> tuple[int, int, int]:
    """Height, width and number of channels of images that can be halved often enough.

    Args:
        event_shape: (H, W) or (H, W, C).
        depth: number of resolutions.

    Raises:
        TypeError: where the shape holds anything but integers.
        ValueError: where it is no image's, or too small for ``depth``.
    """
    shape = as_event_shape(event_shape)
    if len(shape) not in (2, 3):
        raise ValueError(
            f"`event_shape` must be (H, W) or (H, W, C), an image's; got {shape}. For "
            "vectors use `EnergyMLP`, for sets `EnergySet`."
        )
    most = math.ceil(math.log2(max(shape[:2])))  # the last halving still has 2 to halve
    if depth > 1 + most:
        raise ValueError(
            f"`depth` must be at most {1 + most} for images of {shape[0]} by {shape[1]}: "
            f"every resolution halves the one before; got {depth}."
        )
    height, width, channels = (*shape, 1)[:3]
    return height, width, channels


class UNetTrunk(eqx.Module):
    r"""U-Net of an image and a noise level: down by halves, and up with what was left.

    Level ``l`` has ``2**l * channels`` channels and half the sides of the one before.
    A block is a 3 by 3 convolution (zeros beyond the edge) whose output is scaled and
    shifted by the noise level, :math:`h + \text{silu}(g(\log r)\, K * h + b(\log r))`;
    one on each level on the way down, one on the way up. Every pixel of every level has
    its own bias, since what is usual at the centre of aligned images is not at their
    edge. No normalisation: the loss takes second derivatives, and statistics over a
    batch or an image would tie pixels together.

    Halving takes means of two by two, of a last odd row or column by itself, so any
    size will do.

    Attributes:
        inward: kernel of the image, ``(9 * image channels, channels)``.
        down, up: kernels of the blocks, ``(9 * C_l, C_l)``; ``up`` without the lowest
            level's.
        widen, narrow: between two levels, ``(C_l, C_{l + 1})`` and ``(C_{l + 1}, C_l)``.
        places: bias of every pixel, ``(H_l, W_l, C_l)``.
        noise: weights of the noise features, ``(NUM_NOISE_FEATURES, n)``, ``n`` twice
            the number of channels of all blocks.

    References:
        Ronneberger, Fischer, Brox: "U-Net" (MICCAI 2015), arXiv 1505.04597.
    """

    inward: jax.Array
    down: tuple[jax.Array, ...]
    up: tuple[jax.Array, ...]
    widen: tuple[jax.Array, ...]
    narrow: tuple[jax.Array, ...]
    places: tuple[jax.Array, ...]
    noise: jax.Array

    def __init__(
        self, image_shape: tuple[int, int, int], channels: int, depth: int, key
    ):
        check_positive_int("channels", channels)
        height, width, num_in = image_shape
        widths = [channels * 2**level for level in range(depth)]
        keys = iter(jr.split(key, 5 * depth))

        def normal(shape, scale):
            return scale * jr.normal(next(keys), shape, jnp.float32)

        def kernel(num_in, num_out):
            return normal((9 * num_in, num_out), 1.0 / math.sqrt(9 * num_in))

        between = list(zip(widths[:-1], widths[1:], strict=True))
        sides = [(-(-height // 2**i), -(-width // 2**i)) for i in range(depth)]
        self.inward = kernel(num_in, channels)
        self.down = tuple(kernel(width, width) for width in widths)
        self.up = tuple(kernel(width, width) for width in widths[:-1])
        self.widen = tuple(normal((a, b), 1.0 / math.sqrt(a)) for a, b in between)
        self.narrow = tuple(normal((b, a), 1.0 / math.sqrt(b)) for a, b in between)
        self.places = tuple(
            normal((*side, width), 0.5)
            for side, width in zip(sides, widths, strict=True)
        )
        num_modulated = 2 * (2 * sum(widths) - widths[-1])
        self.noise = normal(
            (NUM_NOISE_FEATURES, num_modulated), 0.5 / math.sqrt(NUM_NOISE_FEATURES)
        )

    def __call__(self, z: jax.Array, log_r: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Map ``z`` (H, W, C) and ``log_r`` () to the states of two levels.

        Returns:
            Those of the full size, ``(H, W, channels)``, and of the smallest level.
        """
        modulation = iter(self._split(noise_features(log_r) @ self.noise))
        lowest = len(self.down) - 1
        h = jax.nn.silu(_convolve(z, self.inward) + self.places[0])
        kept = []
        for level in range(lowest):
            h = _block(h, self.down[level], next(modulation))
            kept.append(h)
            h = _halve(h) @ self.widen[level] + self.places[level + 1]
        bottom = h = _block(h, self.down[lowest], next(modulation))
        for level in reversed(range(lowest)):
            h = kept[level] + _double(h @ self.narrow[level], kept[level].shape)
            h = _block(h, self.up[level], next(modulation))
        return h, bottom

    def _split(self, values: jax.Array) -> list[jax.Array]:
        """Gain and shift of each block, ``(2, C_l)``, in the order of the blocks."""
        widths = [kernel.shape[1] for kernel in (*self.down, *self.up[::-1])]
        ends, parts = 0, []
        for width in widths:
            parts.append(values[ends : ends + 2 * width].reshape(2, width))
            ends += 2 * width
        return parts


def _block(h: jax.Array, kernel: jax.Array, modulation: jax.Array) -> jax.Array:
    gain, shift = modulation
    return h + jax.nn.silu((1.0 + gain) * _convolve(h, kernel) + shift)


def _convolve(h: jax.Array, kernel: jax.Array) -> jax.Array:
    """3 by 3, zeros beyond the edge: ``(H, W, C)`` and ``(9 C, D)`` -> ``(H, W, D)``.

    Patches and one product of matrices, not ``eqx.nn.Conv2d``. Inside a compiled loop,
    and ``fit`` and every kernel are one, XLA computes convolutions on the CPU with a
    naive loop: on 256 images of 8 by 8 and three layers of 16 channels a step of the
    loss took 1.6 s with them and .1 s so. A product for each of the 9 shifts, or a dense
    matrix of the whole layer, was 2 to 3 times slower than the patches.
    """
    height, width, _ = h.shape
    padded = jnp.pad(h, ((1, 1), (1, 1), (0, 0)))
    shifts = [(i, j) for i in range(3) for j in range(3)]
    patches = [padded[i : i + height, j : j + width] for i, j in shifts]
    return jnp.concatenate(patches, axis=-1) @ kernel


def _halve(h: jax.Array) -> jax.Array:
    """Means of two by two; an odd last row or column is its own."""
    height, width, channels = h.shape
    if height % 2 or width % 2:
        h = jnp.pad(h, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
    h = h.reshape(-(-height // 2), 2, -(-width // 2), 2, channels)
    return jnp.mean(h, axis=(1, 3))


def _double(h: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Every pixel two by two, cut to ``shape``."""
    height, width, channels = h.shape
    h = jnp.broadcast_to(h[:, None, :, None], (height, 2, width, 2, channels))
    return h.reshape(2 * height, 2 * width, channels)[: shape[0], : shape[1]]
