"""What a fit can be told: the options of ``rtk.fit`` itself, and those of ``Training``."""

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import optax
from jax.sharding import Mesh

from numpyro_rtk._checks import check_fraction, check_positive, check_positive_int
from numpyro_rtk.training.devices import as_devices

__all__ = ["Options", "Training", "check_options"]

_LEARNING_RATE = 5e-3


@dataclasses.dataclass(frozen=True, kw_only=True, repr=False)
class Training:
    """What is seldom changed of a fit: ``rtk.fit(key, samples, training=...)``.

    >>> rtk.Training(num_components=1, patience=None)             # doctest: +SKIP

    Args:
        patience: stop after this many evaluations (one every 250 steps) in a row
            without a better validation loss; None: never stop early.
        ema_decay: of the average of the weights, which is what is returned.
        standardise: ``"coordinate"``, one scale for each coordinate; ``"global"``, one
            for all, which keeps angles. None: global where all standard deviations are
            within a factor of 2, as of coordinates that share a unit, else by
            coordinate.
        noise_range: smallest and largest noise-to-signal ratio, on the standardised
            scale. Structure finer than the smallest is blurred.
        num_components: of the Gaussian mixture (by EM, full covariances; of pairs about
            one mean where rows lie far out) that the energy or the score starts from,
            and whose rest the network learns. None: as many, at most 16 (64 along curves,
            in up to three dimensions), as the held-out rows ask for; and where these
            fall into independent subspaces (independent component analysis), a product
            of such mixtures, if its held-out log density is higher. 1: the Gaussian of
            all rows, which is also what conditional and exchangeable models and more
            than 128 dimensions have.
        optimizer: an optax ``GradientTransformation`` to use as it is, with whatever
            learning rate, schedule and clipping it has; it is given the loss of the step
            as ``value=``. ``fit``'s own ``learning_rate`` must then be left out. None:
            Adam, its gradients clipped to norm 1, with the schedule of ``learning_rate``.
            Each object is compiled for once: keep one for several fits.
        on_host: whether an array stays in the host's memory, or on its disk, from where
            the minibatches of some dozens of steps at a time are sent to the device. None:
            a ``np.memmap`` does, and an array of more than 2 GiB in float32. The rows
            drawn are the same; so is the result, bit for bit on the CPU, except that
            moments of more than 8 million numbers are summed in another order.
        devices: JAX devices, or a mesh of one axis, that share each batch equally; their
            number must divide ``batch_size``. The loss and the weights are those of one
            device up to rounding. None: one device.

    Raises:
        TypeError: for values of the wrong kind.
        ValueError: for values out of range.
    """

    patience: int | None = 8
    ema_decay: float = 0.998
    standardise: str | None = None
    noise_range: tuple[float, float] = (0.02, 20.0)
    num_components: int | None = None
    optimizer: optax.GradientTransformation | None = None
    on_host: bool | None = None
    devices: Sequence[Any] | Mesh | None = None

    def __post_init__(self):
        check_fraction("ema_decay", self.ema_decay)
        for name in ("patience", "num_components"):
            if getattr(self, name) is not None:
                check_positive_int(name, getattr(self, name))
        if self.standardise not in ("coordinate", "global", None):
            raise ValueError(
                '`standardise` must be "coordinate", "global" or None; got '
                f"{self.standardise!r}."
            )
        _check_optimizer(self.optimizer)
        if self.on_host is not None and not isinstance(self.on_host, bool):
            raise TypeError(
                f"`on_host` must be True, False or None; got {self.on_host!r}."
            )
        # frozen: what is derived is set as `dataclasses` itself does
        object.__setattr__(self, "noise_range", _as_noise_range(self.noise_range))
        object.__setattr__(self, "devices", as_devices(self.devices))

    def __repr__(self) -> str:
        """One option a line; of an optimiser, which is functions, that there is one."""
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        lines = [f"    {name}={_shown(value)},\n" for name, value in values.items()]
        return f"Training(\n{''.join(lines)})"


class Options(NamedTuple):
    """The numbers of a fit, checked.

    Attributes:
        num_steps: gradient steps, at most.
        batch_size: noisy points a step.
        learning_rate: the largest; None with an optimiser of the user's.
        validation_fraction: of the rows.
        training: all else.
    """

    num_steps: int
    batch_size: int
    learning_rate: float | None
    validation_fraction: float
    training: Training


def check_options(
    num_steps: int,
    batch_size: int,
    learning_rate: float | None,
    validation_fraction: float,
    training: Training | None,
) -> Options:
    """The options of a fit with what stands for None.

    Raises:
        TypeError: for values of the wrong kind.
        ValueError: for values out of range, and a ``learning_rate`` beside an optimiser.
    """
    check_positive_int("num_steps", num_steps)
    check_positive_int("batch_size", batch_size)
    check_fraction("validation_fraction", validation_fraction)
    training = Training() if training is None else training
    if not isinstance(training, Training):
        raise TypeError(
            "`training` must be a `numpyro_rtk.Training`, such as "
            f"`Training(patience=None)`, or None; got {training!r:.80}."
        )
    if learning_rate is not None:
        check_positive("learning_rate", learning_rate)
        if training.optimizer is not None:
            raise ValueError(
                "`learning_rate` must be None where `training` has an `optimizer`, which "
                f"is used as it is; got {learning_rate!r}. Give the rate to the "
                "optimizer: `optax.adam(learning_rate)`."
            )
    elif training.optimizer is None:
        learning_rate = _LEARNING_RATE
    return Options(num_steps, batch_size, learning_rate, validation_fraction, training)


def _check_optimizer(optimizer: object) -> None:
    if optimizer is None or isinstance(optimizer, optax.GradientTransformation):
        return
    raise TypeError(
        "`optimizer` must be an optax GradientTransformation, such as "
        f"`optax.adam(1e-3)`, or None; got {optimizer!r:.80}."
    )


def _as_noise_range(noise_range: Any) -> tuple[float, float]:
    if not isinstance(noise_range, tuple | list) or len(noise_range) != 2:
        raise ValueError(
            "`noise_range` must be the smallest and the largest noise-to-signal ratio; "
            f"got {noise_range!r}."
        )
    for value in noise_range:
        check_positive("noise_range", value)
    if noise_range[0] >= noise_range[1]:
        raise ValueError(
            f"`noise_range` must increase; got {noise_range!r}. Swap the two."
        )
    return float(noise_range[0]), float(noise_range[1])


def _shown(value: object) -> str:
    is_optimizer = isinstance(value, optax.GradientTransformation)
    return "<optax GradientTransformation>" if is_optimizer else repr(value)
