"""A scalar energy network for images."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp

from numpyro_rtk._checks import check_positive_int
from numpyro_rtk.networks.base import AbstractEnergyNetwork
from numpyro_rtk.networks.shapes import as_event_shape, untrained
from numpyro_rtk.networks.unet_trunk import UNetTrunk, as_image_shape

__all__ = ["EnergyUNet"]


class EnergyUNet(AbstractEnergyNetwork):
    r"""U-Net with one number out: a correction to the energy of an image.

    .. math:: f(z, \log r) = \langle z, P h \rangle + w \cdot b

    with ``h`` the state at every pixel and ``b`` that of the smallest resolution. The
    inner product of an image with a U-Net's output is the energy of Guth et al.; the
    second term adds what the shape of the image says as a whole. Starts at zero, so
    that an untrained model is the Gaussian that fits the data.

    >>> network = EnergyUNet((8, 8), key=key)                    # doctest: +SKIP
    >>> model_, _ = rtk.fit(key, images, network=network)        # doctest: +SKIP

    Args:
        event_shape: (H, W) or (H, W, C); any size.
        channels: at full size; every halving doubles them.
        depth: number of resolutions, the full one among them.
        key: random key.

    Attributes:
        event_shape: shape of one image.
        trunk: the U-Net.
        readout: ``w``, of the shape of the smallest level.
        pull: ``P``, transposed, ``(channels, C)``.

    Raises:
        TypeError: for sizes that are no integers.
        ValueError: for shapes that are no image's, or too small for ``depth``.

    References:
        Guth, Kadkhodaie, Simoncelli: "Learning normalized image densities via dual
        score matching" (2025), arXiv 2506.05310.
    """

    event_shape: tuple[int, ...] = eqx.field(static=True)
    trunk: UNetTrunk
    readout: jax.Array
    pull: jax.Array

    def __init__(
        self,
        event_shape: tuple[int, ...],
        *,
        channels: int = 16,
        depth: int = 3,
        key: jax.Array,
    ):
        check_positive_int("depth", depth)
        image_shape = as_image_shape(event_shape, depth)
        self.event_shape = as_event_shape(event_shape)
        self.trunk = UNetTrunk(image_shape, channels, depth, key)
        self.readout = untrained(self.trunk.places[-1].shape)
        self.pull = untrained((channels, image_shape[2]))

    def __call__(self, z: jax.Array, log_r: jax.Array) -> jax.Array:
        """Map ``z`` (event_shape) and ``log_r`` () to a scalar."""
        z = z.reshape(*self.event_shape[:2], -1)
        h, bottom = self.trunk(z, log_r)
        return jnp.sum((h @ self.pull) * z) + jnp.sum(bottom * self.readout)

    def hyperparameters(self) -> dict[str, Any]:
        """The constructor's arguments, except ``key``."""
        return {
            "event_shape": list(self.event_shape),
            "channels": self.pull.shape[0],
            "depth": len(self.trunk.down),
        }
