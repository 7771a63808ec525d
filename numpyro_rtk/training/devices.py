"""Where a fit puts its arrays: on one device, or on several that share each batch."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

__all__ = ["Placement", "as_devices", "place_on"]

_AXIS = "batch"


class Placement(NamedTuple):
    """Data parallelism: weights on every device, a share of the batch on each.

    Attributes:
        mesh: of the devices, with one axis; None: JAX's default device alone.
    """

    mesh: Mesh | None

    @property
    def batch(self) -> NamedSharding | None:
        """Sharding of arrays ``(batch_size, ...)``."""
        return self._sharding(_AXIS)

    def replicate(self, tree: Any) -> Any:
        """Its arrays on every device; nothing is done to what is there already."""
        if self.mesh is None:
            return tree
        arrays, rest = eqx.partition(tree, eqx.is_array)
        return eqx.combine(jax.device_put(arrays, self._sharding()), rest)

    def share(self, tree: Any, axis: int) -> Any:
        """Arrays split along this axis, or the same everywhere if they cannot be."""
        if self.mesh is None:
            return jax.tree.map(jnp.asarray, tree)
        split = [
            leaf.shape[axis] % self.mesh.size == 0 for leaf in jax.tree.leaves(tree)
        ]
        names = (*(None for _ in range(axis)), _AXIS) if all(split) else ()
        return jax.device_put(tree, self._sharding(*names))

    def gather(self, tree: Any) -> Any:
        """Back on the default device, as if there had been no other."""
        return (
            tree
            if self.mesh is None
            else jax.tree.map(jnp.asarray, jax.device_get(tree))
        )

    def _sharding(self, *names: str | None) -> NamedSharding | None:
        if self.mesh is None:
            return None
        return NamedSharding(self.mesh, PartitionSpec(*names))


def as_devices(devices: Any) -> tuple[Any, ...] | None:
    """Those of a sequence, or of a mesh of one axis; None for None.

    Raises:
        TypeError: for anything else.
        ValueError: for no devices, and one that is given twice or belongs to another
            process.
    """
    if devices is None:
        return None
    if isinstance(devices, Mesh):
        if devices.devices.ndim != 1:
            raise ValueError(
                "`devices` must be a mesh of one axis; got one of shape "
                f"{dict(devices.shape)}. Pass `list(mesh.devices.flat)`."
            )
        devices = list(devices.devices)
    elif isinstance(devices, np.ndarray):
        devices = list(devices)
    if not isinstance(devices, Sequence) or not all(
        isinstance(device, jax.Device) for device in devices
    ):
        raise TypeError(
            "`devices` must be a sequence of JAX devices, such as `jax.devices()`, a mesh "
            f"or None; got {devices!r:.80}."
        )
    if len(devices) == 0 or len(set(devices)) < len(devices):
        raise ValueError(
            f"`devices` must hold at least one device, and none twice; got {devices!r}."
        )
    if any(device.process_index != jax.process_index() for device in devices):
        raise ValueError(
            "`devices` must belong to this process; got some of another. Pass "
            "`jax.local_devices()`."
        )
    return tuple(devices)


def place_on(devices: Any, batch_size: int) -> Placement:
    """The placement over these devices; None: the default one.

    Raises:
        ValueError: for a batch that they cannot share equally.
    """
    if devices is None:
        return Placement(None)
    rest = batch_size % len(devices)
    if rest:
        larger = batch_size - rest + len(devices)
        raise ValueError(
            f"`batch_size` must be a multiple of the number of `devices`, {len(devices)}; "
            f"got {batch_size}. Take {larger}."
        )
    return Placement(Mesh(np.asarray(devices), (_AXIS,)))
