r"""Noise schedules of networks that were trained elsewhere.

A diffusion model or a flow sees :math:`x = \alpha x_0 + \sigma e`, and a time of its own.
Two families agree where their noise-to-signal ratios do, so a schedule here is three
functions of :math:`r = \sigma / \alpha`. OU time ``t`` has :math:`r = \sqrt{e^{2t} - 1}`.

=================  ================  ===========  =================================
schedule           alpha             sigma        the network's time
=================  ================  ===========  =================================
``VP``             (1 + r^2)^{-1/2}  r alpha      tau of B(tau) = log(1 + r^2)
``DDPM``           (1 + r^2)^{-1/2}  r alpha      index, linear in log r in between
``VE``             1                 r            r
``EDM``            1                 r            r; of a raw network log(r) / 4
``FlowMatching``   1 / (1 + r)       r / (1 + r)  1 / (1 + r): data at 1
``RectifiedFlow``  1 / (1 + r)       r / (1 + r)  r / (1 + r): data at 0
``OU``             (1 + r^2)^{-1/2}  r alpha      log(1 + r^2) / 2
=================  ================  ===========  =================================

A network with a clock of its own (an index, 1,000 times the time) is given as
``functools.partial(lambda net, x, time: net(x, 1000 * time), net)``. A schedule that is not
here is a subclass of :class:`Schedule`. To be handed to
:meth:`numpyro_rtk.ScoreModel.from_network`.
"""

import abc
import math
from collections.abc import Callable
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from numpyro_rtk._checks import check_bool, check_positive

__all__ = [
    "DDPM",
    "EDM",
    "OU",
    "VE",
    "VP",
    "FlowMatching",
    "RectifiedFlow",
    "Schedule",
]

NoiseRange = tuple[float | None, float | None]


class Schedule(eqx.Module):
    """Signal, noise and the network's own time at a noise-to-signal ratio ``r``, a scalar.

    Attributes:
        predictions: what a network of this schedule can give: "noise", "data",
            "velocity", "score".
    """

    predictions: ClassVar[tuple[str, ...]] = ("noise", "data", "score")

    @abc.abstractmethod
    def alpha(self, r: jax.Array) -> jax.Array:
        """The signal's factor."""

    @abc.abstractmethod
    def sigma(self, r: jax.Array) -> jax.Array:
        """The noise's standard deviation, ``r * alpha``."""

    @abc.abstractmethod
    def time(self, r: jax.Array) -> jax.Array:
        """What the network is told."""

    @property
    def noise_range(self) -> NoiseRange:
        """Smallest and largest trained ``r``; None where that end is open."""
        return None, None

    def call(
        self, fn: Callable[..., jax.Array], x: jax.Array, r: jax.Array
    ) -> jax.Array:
        """The prediction at ``x = alpha x_0 + sigma e``, of its shape."""
        return fn(x, self.time(r))

    def noise_of_velocity(
        self, x: jax.Array, velocity: jax.Array, r: jax.Array
    ) -> jax.Array:
        """The noise that a velocity stands for, where ``predictions`` has velocities."""
        raise NotImplementedError(f"{type(self).__name__} has no velocity.")

    def hyperparameters(self) -> dict[str, Any]:
        """The constructor's arguments as JSON holds them, but for what is an array."""
        names = [f.name for f in _fields(self) if f.metadata.get("static", False)]
        return {name: getattr(self, name) for name in names}


class _VariancePreserving(Schedule):
    """``alpha**2 + sigma**2 = 1``; the velocity is ``alpha e - sigma x_0``."""

    predictions: ClassVar[tuple[str, ...]] = ("noise", "data", "velocity", "score")

    def alpha(self, r: jax.Array) -> jax.Array:
        """The signal's factor."""
        return jax.lax.rsqrt(1.0 + jnp.square(r))

    def sigma(self, r: jax.Array) -> jax.Array:
        """The noise's standard deviation."""
        return r * self.alpha(r)

    def noise_of_velocity(
        self, x: jax.Array, velocity: jax.Array, r: jax.Array
    ) -> jax.Array:
        """The noise that a velocity stands for."""
        return self.sigma(r) * x + self.alpha(r) * velocity


class VP(_VariancePreserving):
    r"""The variance-preserving SDE with a linear rate, time from 0 to ``end``.

    .. math:: \alpha = e^{-B(\tau)/2}, \qquad
              B(\tau) = \beta_\text{min} \tau
              + \tfrac{1}{2} (\beta_\text{max} - \beta_\text{min}) \tau^2 / \text{end}

    Y. Song et al., ICLR 2021, arXiv 2011.13456. ``VP(1.0, 1.0, end=10.0)`` is the
    schedule of :math:`\int\beta = \tau`. A velocity is that of progressive distillation,
    :math:`v = \alpha e - \sigma x_0` (Salimans & Ho, ICLR 2022, arXiv 2202.00512).

    Args:
        beta_min: rate at time 0, positive.
        beta_max: rate at the end, at least as large.
        end: the largest time.

    Raises:
        TypeError: for anything but numbers.
        ValueError: for rates that are not positive or fall, or a horizon at 0.
    """

    beta_min: float = eqx.field(static=True)
    beta_max: float = eqx.field(static=True)
    end: float = eqx.field(static=True)

    def __init__(self, beta_min: float = 0.1, beta_max: float = 20.0, end: float = 1.0):
        for name, value in (("beta_min", beta_min), ("beta_max", beta_max)):
            check_positive(name, value)
        check_positive("end", end)
        if beta_max < beta_min:
            raise ValueError(
                f"`beta_max` must be at least `beta_min`, {beta_min}; got {beta_max}. "
                "Swap them."
            )
        self.beta_min, self.beta_max = float(beta_min), float(beta_max)
        self.end = float(end)

    def time(self, r: jax.Array) -> jax.Array:
        """What the network is told."""
        total = jnp.log1p(jnp.square(r))
        slope = (self.beta_max - self.beta_min) / self.end
        # the root of a quadratic in the form that keeps its digits near 0
        return (
            2.0
            * total
            / (self.beta_min + jnp.sqrt(self.beta_min**2 + 2.0 * slope * total))
        )

    @property
    def noise_range(self) -> NoiseRange:
        """Smallest and largest trained ``r``."""
        total = 0.5 * (self.beta_min + self.beta_max) * self.end
        return None, math.sqrt(math.expm1(total)) if total < 700.0 else None


class DDPM(_VariancePreserving):
    r"""Discrete steps with the cumulative products :math:`\bar\alpha_i`.

    :math:`\alpha = \bar\alpha^{1/2}`; the time is the index, from 0, as diffusers'
    ``timesteps`` have it, and between two steps linear in ``log r``. A velocity is
    that of :class:`VP`. A network that looks its index up in a table needs a whole
    number: ``lambda x, time: net(x, jnp.round(time).astype(int))``.

    J. Ho, A. Jain, P. Abbeel, NeurIPS 2020, arXiv 2006.11239; A. Nichol, P. Dhariwal,
    ICML 2021, arXiv 2102.09672.

    Args:
        alphas_cumprod: ``(steps,)``, falling strictly, between 0 and 1: diffusers'
            ``scheduler.alphas_cumprod``, or ``jnp.cumprod(1 - betas)``.

    Attributes:
        log_noise: log of the noise-to-signal ratio of every step, ``(steps,)``.

    Raises:
        ValueError: for anything else.
    """

    log_noise: jax.Array

    def __init__(self, alphas_cumprod: Any):
        try:
            products = np.asarray(alphas_cumprod, np.float64)
        except (TypeError, ValueError):
            raise TypeError(
                "`alphas_cumprod` must be an array of numbers; got "
                f"{type(alphas_cumprod).__name__}. Pass `scheduler.alphas_cumprod`."
            ) from None
        if products.ndim != 1 or len(products) < 2:
            raise ValueError(
                "`alphas_cumprod` must have shape (steps,) with at least 2 steps; got "
                f"{products.shape}. Pass one number for each step."
            )
        inside = np.all((products > 0.0) & (products < 1.0))  # false of NaN as well
        if not inside or not np.all(np.diff(products) < 0.0):
            raise ValueError(
                "`alphas_cumprod` must fall strictly within (0, 1), from the data to the "
                f"noise; got values from {products[0]:.6g} to {products[-1]:.6g}. Of rates "
                "beta it is `jnp.cumprod(1 - betas)`; leave out a last one that is 0."
            )
        log_noise = 0.5 * (np.log1p(-products) - np.log(products))
        self.log_noise = jnp.asarray(log_noise, jnp.result_type(float))

    def time(self, r: jax.Array) -> jax.Array:
        """What the network is told."""
        index = jnp.arange(len(self.log_noise), dtype=self.log_noise.dtype)
        return jnp.interp(jnp.log(r), self.log_noise, index)

    @property
    def noise_range(self) -> NoiseRange:
        """Smallest and largest trained ``r``."""
        first, last = np.exp(np.asarray(self.log_noise[jnp.asarray([0, -1])], float))
        return float(first), float(last)

    def __repr__(self) -> str:
        low, high = self.noise_range
        return f"DDPM({len(self.log_noise)} steps, noise {low:.3g} to {high:.3g})"


class _VarianceExploding(Schedule):
    """Noise on top of the data as they are."""

    def alpha(self, r: jax.Array) -> jax.Array:
        """The signal's factor."""
        return jnp.ones_like(r)

    def sigma(self, r: jax.Array) -> jax.Array:
        """The noise's standard deviation."""
        return r


class VE(_VarianceExploding):
    r"""The variance-exploding SDE: :math:`x = x_0 + \sigma e`, and the network is told.

    Y. Song et al., ICLR 2021, arXiv 2011.13456.

    Args:
        sigma_min: smallest trained standard deviation, of data as the network sees it.
        sigma_max: largest.
        time_is: what the network is told: ``"sigma"``, or ``"fraction"``, the SDE's time
            from 0 to 1, in which the log of sigma is linear.

    Raises:
        TypeError: for anything but numbers.
        ValueError: for standard deviations that are not positive or do not grow.
    """

    sigma_min: float = eqx.field(static=True)
    sigma_max: float = eqx.field(static=True)
    time_is: str = eqx.field(static=True)

    def __init__(self, sigma_min: float, sigma_max: float, time_is: str = "sigma"):
        check_positive("sigma_min", sigma_min)
        check_positive("sigma_max", sigma_max)
        if sigma_max <= sigma_min:
            raise ValueError(
                f"`sigma_max` must be above `sigma_min`, {sigma_min}; got {sigma_max}. "
                "Swap them."
            )
        if time_is not in ("sigma", "fraction"):
            raise ValueError(
                f"`time_is` must be 'sigma' or 'fraction'; got {time_is!r}. For any "
                "other clock wrap the network: `lambda x, sigma: net(x, jnp.log(sigma))`."
            )
        self.sigma_min, self.sigma_max = float(sigma_min), float(sigma_max)
        self.time_is = time_is

    def time(self, r: jax.Array) -> jax.Array:
        """What the network is told."""
        if self.time_is == "sigma":
            return r
        return jnp.log(r / self.sigma_min) / math.log(self.sigma_max / self.sigma_min)

    @property
    def noise_range(self) -> NoiseRange:
        """Smallest and largest trained ``r``."""
        return self.sigma_min, self.sigma_max


class EDM(_VarianceExploding):
    r"""EDM: :math:`x = x_0 + \sigma e`, a denoiser D(x, sigma) or its raw network F.

    .. math:: D(x, \sigma) = \frac{\sigma_d^2}{\sigma^2 + \sigma_d^2}\, x
              + \frac{\sigma \sigma_d}{\sqrt{\sigma^2 + \sigma_d^2}}\,
              F\Bigl(\frac{x}{\sqrt{\sigma^2 + \sigma_d^2}}, \tfrac14 \ln\sigma\Bigr)

    T. Karras et al., NeurIPS 2022, arXiv 2206.00364. Give ``predicts="data"`` for both.

    Args:
        sigma_data: standard deviation of the data as the network sees it.
        raw: True for F, which is told ``log(sigma) / 4``; False for D, told ``sigma``.

    Raises:
        TypeError: for anything but a number and a boolean.
        ValueError: for a standard deviation that is not positive.
    """

    sigma_data: float = eqx.field(static=True)
    raw: bool = eqx.field(static=True)

    def __init__(self, sigma_data: float = 0.5, raw: bool = False):
        check_positive("sigma_data", sigma_data)
        check_bool("raw", raw)
        self.sigma_data, self.raw = float(sigma_data), bool(raw)

    def time(self, r: jax.Array) -> jax.Array:
        """What the network is told."""
        return 0.25 * jnp.log(r) if self.raw else r

    def call(
        self, fn: Callable[..., jax.Array], x: jax.Array, r: jax.Array
    ) -> jax.Array:
        """The prediction; of a raw network, the denoiser."""
        if not self.raw:
            return super().call(fn, x, r)
        total = jnp.square(r) + self.sigma_data**2
        out = fn(x * jax.lax.rsqrt(total), self.time(r))
        skip, factor = self.sigma_data**2 / total, r * self.sigma_data
        return skip * x + factor * jax.lax.rsqrt(total) * out


class _Flow(Schedule):
    """A straight line from noise to data, of time 0 to 1 or back."""

    predictions: ClassVar[tuple[str, ...]] = ("noise", "data", "velocity", "score")

    def alpha(self, r: jax.Array) -> jax.Array:
        """The signal's factor."""
        return 1.0 / (1.0 + r)

    def sigma(self, r: jax.Array) -> jax.Array:
        """The noise's standard deviation."""
        return r / (1.0 + r)


class FlowMatching(_Flow):
    r"""Flow matching along straight lines, noise at time 0, data at 1.

    :math:`x = \tau x_0 + (1 - \tau) e` with the velocity :math:`u = x_0 - e`. Y. Lipman et
    al., ICLR 2023, arXiv 2210.02747 (its smallest noise 0); torchcfm.
    """

    def time(self, r: jax.Array) -> jax.Array:
        """What the network is told."""
        return self.alpha(r)

    def noise_of_velocity(
        self, x: jax.Array, velocity: jax.Array, r: jax.Array
    ) -> jax.Array:
        """The noise that a velocity stands for."""
        return x - self.alpha(r) * velocity


class RectifiedFlow(_Flow):
    r"""The same lines, data at time 0, noise at 1.

    :math:`x = (1 - \tau) x_0 + \tau e` with the velocity :math:`u = e - x_0`. X. Liu, C.
    Gong, Q. Liu, ICLR 2023, arXiv 2209.03003, in the direction of Stable Diffusion 3 (P.
    Esser et al., ICML 2024, arXiv 2403.03206), whose networks are told
    1,000 times the time.
    """

    def time(self, r: jax.Array) -> jax.Array:
        """What the network is told."""
        return self.sigma(r)

    def noise_of_velocity(
        self, x: jax.Array, velocity: jax.Array, r: jax.Array
    ) -> jax.Array:
        """The noise that a velocity stands for."""
        return x + self.alpha(r) * velocity


class OU(_VariancePreserving):
    """This package's own process and time; see :mod:`numpyro_rtk.noise`."""

    def time(self, r: jax.Array) -> jax.Array:
        """What the network is told."""
        return 0.5 * jnp.log1p(jnp.square(r))


def _fields(module: eqx.Module) -> tuple[Any, ...]:
    return tuple(module.__dataclass_fields__.values())
