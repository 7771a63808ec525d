"""Where the rows of a fit lie: on the device, or on the host.

A fit asks four things of its rows, in this order: to be standardised, to hold some back,
with a checkpoint to be told from others, and to give the minibatches of the next steps.
Values on their way to the device are pytrees for :class:`Resident` and
:class:`Minibatches`: what belongs to a row could travel beside it.
"""

import math
import zlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from numpyro_rtk.gaussians import NoisedMixture
from numpyro_rtk.networks.condition import Conditioning, fit_conditioning
from numpyro_rtk.training.data import (
    check_condition,
    check_finite,
    check_form,
    check_samples,
    check_variation,
    split_rows,
)
from numpyro_rtk.training.loop import Minibatches, Resident, draw_rows
from numpyro_rtk.training.no_density import stretches
from numpyro_rtk.training.standardise import (
    Moments,
    fit_gaussian_in_chunks,
    fit_loc_and_scale,
    moments_in_chunks,
)

__all__ = ["AbstractRows", "flat", "open_rows"]

_MAX_DEVICE_BYTES = 2 << 30  # in float32; larger arrays stay on the host
_CHUNK_SIZE = 1 << 23  # numbers of an array that are held in float64 at a time
# A prefetch block: minibatches that are sent to the device together. While it takes the
# steps of one block the host gathers the next.
_BLOCK_STEPS, _BLOCK_BYTES = 64, 32 << 20

Place = Callable[[Any], Minibatches]


def open_rows(
    samples: Any,
    on_host: bool | None,
    replicate: Callable[[Any], Any],
    condition: Any = None,
) -> "AbstractRows":
    """The samples, checked, where they are to stay.

    Args:
        samples: an array.
        on_host: where it stays; None: a memory map, and an array of more than 2 GiB in
            float32, on the host, others on the device.
        replicate: puts an array on the device, or on each.
        condition: of each sample; None: there is none.

    Raises:
        TypeError: for samples of the wrong kind.
        ValueError: where a density cannot be learned from them.
    """
    if condition is not None:
        if on_host:
            raise ValueError(
                "`condition` must be given with samples that the device's memory holds; "
                "got `on_host=True`. Learn from an array of some of the rows."
            )
        return ConditionalRows(samples, condition, replicate)
    if on_host is None and isinstance(samples, np.ndarray):
        large = 4 * samples.size > _MAX_DEVICE_BYTES
        on_host = large or isinstance(samples, np.memmap)
    return HostRows(samples) if on_host else DeviceRows(samples, replicate)


class AbstractRows(ABC):
    """The samples of a fit, checked.

    Attributes:
        event_shape: of one row.
        condition: of each row, ``(n, *condition_shape)``; None where there is none.
        conditioning: what ``standardise`` has found of it.
    """

    event_shape: tuple[int, ...]
    condition: np.ndarray | None = None
    conditioning: Conditioning | None = None
    _moments: Moments
    _loc: np.ndarray
    _scale: np.ndarray

    @property
    def condition_shape(self) -> tuple[int, ...] | None:
        """Of one row's condition; None where there is none."""
        return None if self.condition is None else self.condition.shape[1:]

    @property
    def moments(self) -> Moments:
        """Of the rows, on their own scale."""
        return self._moments

    def look(self) -> np.ndarray:
        """Some thousand rows from all over, in their order, flat; all, if they are few."""
        dim = math.prod(self.event_shape)
        return flat(self._gather(stretches(self._moments.num, dim)))

    def standardise(
        self,
        mode: str | None,
        exchangeable: bool = False,
        units: np.ndarray | None = None,
    ) -> tuple[np.ndarray, np.ndarray, NoisedMixture]:
        """``loc``, ``scale`` and the Gaussian base of what they standardise.

        Args:
            mode: see :func:`fit_loc_and_scale`, like ``exchangeable`` and ``units``.
            exchangeable: whether the order along an event's first axis is to play no part.
            units: of the scale, where another density's noise is to be followed.
        """
        self._loc, self._scale = fit_loc_and_scale(
            self._moments, mode, exchangeable, units
        )
        flat = (
            self._standardised(chunk).reshape(len(chunk), -1)
            for chunk in self._chunks()
        )
        num_elements = self.event_shape[0] if exchangeable else 1
        base = fit_gaussian_in_chunks(flat, self._moments.num, num_elements)
        return self._loc, self._scale, base

    @abstractmethod
    def hold_out(self, key: jax.Array, fraction: float) -> Any:
        """Keep rows back from training; these, standardised, ``(k, *event_shape)``.

        Where there is a condition, a pair of them and their conditions.
        """

    @abstractmethod
    def some(self, num: int) -> np.ndarray:
        """At most ``num`` rows to train on, standardised and flat, after ``hold_out``."""

    @abstractmethod
    def identity(self) -> list:
        """What these rows do not share with those of another fit, as JSON holds it."""

    @abstractmethod
    def blocks(
        self,
        key: jax.Array,
        first_step: int,
        num_steps: int,
        batch_size: int,
        place: Place,
    ) -> Iterator[tuple[Resident | Minibatches, int]]:
        """Rows for :func:`run_steps`, and for how many steps each of them are.

        Args:
            key: random key, the same for all calls of one fit.
            first_step: number of the first step.
            num_steps: how many, after it and with it.
            batch_size: rows a step.
            place: puts arrays ``(steps, batch_size, ...)`` on the device.
        """

    @abstractmethod
    def _gather(self, index: np.ndarray) -> np.ndarray:
        """These of the rows that the moments are of."""

    @abstractmethod
    def _chunks(self) -> Iterable[np.ndarray]:
        """The rows that the moments are of, ``(m, *event_shape)`` in float64."""

    def _standardised(self, rows: np.ndarray) -> np.ndarray:
        return (rows.astype(np.float64, copy=False) - self._loc) / self._scale


class DeviceRows(AbstractRows):
    """An array in the device's memory, where each step draws its rows."""

    def __init__(self, samples: Any, replicate: Callable[[Any], Any]):
        self._samples = check_samples(samples)
        self.event_shape = self._samples.shape[1:]
        self._moments = moments_in_chunks([self._samples])
        self._replicate = replicate

    def hold_out(self, key, fraction):
        z = self._standardised(self._samples)
        train, held_out = split_rows(key, len(z), fraction)
        self._train = self._replicate(jnp.asarray(z[train], jnp.float32))
        return z[held_out]

    def some(self, num):
        return flat(np.asarray(self._train[:num]))

    def identity(self):
        content = np.ascontiguousarray(self._samples).tobytes()
        return [list(self._samples.shape), zlib.crc32(content)]

    def blocks(self, key, first_step, num_steps, batch_size, place):
        yield Resident(self._train), num_steps

    def _gather(self, index):
        return self._samples[index]

    def _chunks(self):
        return [self._samples]


class ConditionalRows(DeviceRows):
    """An array in the device's memory, and the condition of each of its rows."""

    def __init__(self, samples: Any, condition: Any, replicate: Callable[[Any], Any]):
        super().__init__(samples, replicate)
        self.condition = check_condition(condition, len(self._samples))

    def standardise(self, mode, exchangeable=False, units=None):
        """``loc``, ``scale``, and the base of what a regression on the condition leaves."""
        if exchangeable:
            raise ValueError(
                "`network` must not be exchangeable where there is a `condition`: the "
                "regression on it would not be. Use an `EnergyMLP`."
            )
        assert self.condition is not None
        self._loc, self._scale = fit_loc_and_scale(self._moments, mode, units=units)
        z = self._standardised(self._samples).reshape(len(self._samples), -1)
        self.conditioning, residual = fit_conditioning(z, self.condition)
        base = fit_gaussian_in_chunks([residual], len(residual))
        return self._loc, self._scale, base

    def hold_out(self, key, fraction):
        """Rows kept back from training and their conditions, a pair."""
        assert self.condition is not None
        z, c = self._standardised(self._samples), self.condition
        train, held_out = split_rows(key, len(z), fraction)
        pair = (jnp.asarray(values[train], jnp.float32) for values in (z, c))
        self._train = self._replicate(tuple(pair))
        return z[held_out], c[held_out]


class HostRows(AbstractRows):
    """An array that stays on the host, which sends the rows that a device would draw.

    It may be larger than the host's memory too: it is read in chunks.
    """

    def __init__(self, samples: Any):
        self._samples = check_form(samples)
        self.event_shape = self._samples.shape[1:]
        if len(self._samples) > np.iinfo(np.int32).max:
            raise ValueError(
                "`samples` must have fewer than 2**31 rows as one array; got shape "
                f"{self._samples.shape}. Learn from every other row: `samples[::2]`."
            )
        self._moments = moments_in_chunks(self._checked())
        check_variation(np.sqrt(self._moments.variance), self._moments.size)

    def hold_out(self, key, fraction):
        self._train, held_out = split_rows(key, len(self._samples), fraction)
        return self._standardised(self._gather(held_out))

    def some(self, num):
        rows = self._standardised(self._gather(self._train[:num]))
        return flat(rows.astype(np.float32))

    def identity(self):
        checksum = 0  # that of the same rows on the device
        for chunk in self._chunks():
            checksum = zlib.crc32(np.ascontiguousarray(chunk).tobytes(), checksum)
        return [list(self._samples.shape), checksum]

    def blocks(self, key, first_step, num_steps, batch_size, place):
        drawn = draw_rows(
            key,
            first_step,
            len(self._train),
            num_steps=num_steps,
            batch_size=batch_size,
        )
        drawn = np.asarray(drawn).reshape(-1)
        take = lambda start, stop: self._gather(self._train[drawn[start:stop]])
        return self._send(take, num_steps, batch_size, place)

    def _send(
        self,
        take: Callable[[int, int], np.ndarray],
        num_steps: int,
        batch_size: int,
        place: Place,
    ) -> Iterator[tuple[Minibatches, int]]:
        """Blocks of one shape, from ``take(start, stop)``: rows of steps, in order."""
        row_bytes = 4 * math.prod(self.event_shape)
        size = max(min(_BLOCK_STEPS, _BLOCK_BYTES // (batch_size * row_bytes)), 1)
        for start in range(0, num_steps, size):
            num = min(size, num_steps - start)
            # a new array each time: the device may still read the last one
            block = np.zeros((size * batch_size, *self.event_shape), np.float32)
            rows = take(start * batch_size, (start + num) * batch_size)
            block[: num * batch_size] = self._standardised(rows)
            yield place(block.reshape((size, batch_size, *self.event_shape))), num

    def _gather(self, index: np.ndarray) -> np.ndarray:
        """``samples[index]``, read in the order in which the rows lie on a disk."""
        order = np.argsort(index)
        rows = np.empty((len(index), *self.event_shape), self._samples.dtype)
        rows[order] = self._samples[index[order]]
        return rows

    def _chunks(self):
        length = max(_CHUNK_SIZE // math.prod(self.event_shape), 1)
        for start in range(0, len(self._samples), length):
            yield self._samples[start : start + length].astype(np.float64)

    def _checked(self):
        first = 0
        for chunk in self._chunks():
            last = first + len(chunk) - 1
            whole = len(chunk) == len(self._samples)
            name = "`samples`" if whole else f"`samples`, rows {first} to {last},"
            check_finite(chunk, name, first)
            yield chunk
            first = last + 1


def flat(rows: np.ndarray) -> np.ndarray:
    """Rows ``(n, *event_shape)`` as ``(n, dim)``, in float64."""
    return rows.reshape(len(rows), -1).astype(np.float64)
