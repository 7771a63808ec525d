"""A score network for images."""

from typing import Any

import equinox as eqx
import jax

from numpyro_rtk._checks import check_positive_int
from numpyro_rtk.networks.base import AbstractScoreNetwork
from numpyro_rtk.networks.shapes import as_event_shape, untrained
from numpyro_rtk.networks.unet_trunk import UNetTrunk, as_image_shape

__all__ = ["ScoreUNet"]


class ScoreUNet(AbstractScoreNetwork):
    """U-Net with an image out: a correction to the score of an image.

    The trunk is that of :class:`EnergyUNet`. Cheaper than an energy (no backward pass),
    but it has no density: nothing can be accepted, weighted or exchanged with it.

    Args:
        event_shape: (H, W) or (H, W, C); any size.
        channels: at full size; every halving doubles them.
        depth: number of resolutions, the full one among them.
        key: random key.

    Attributes:
        event_shape: shape of one image.
        trunk: the U-Net.
        readout: ``(channels, C)``.

    Raises:
        TypeError: for sizes that are no integers.
        ValueError: for shapes that are no image's, or too small for ``depth``.
    """

    event_shape: tuple[int, ...] = eqx.field(static=True)
    trunk: UNetTrunk
    readout: jax.Array

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
        self.readout = untrained((channels, image_shape[2]))

    def __call__(self, z: jax.Array, log_r: jax.Array) -> jax.Array:
        """Map ``z`` (event_shape) and ``log_r`` () to an array of ``event_shape``."""
        h, _ = self.trunk(z.reshape(*self.event_shape[:2], -1), log_r)
        return (h @ self.readout).reshape(self.event_shape)

    def hyperparameters(self) -> dict[str, Any]:
        """The constructor's arguments, except ``key``."""
        return {
            "event_shape": list(self.event_shape),
            "channels": self.readout.shape[0],
            "depth": len(self.trunk.down),
        }
