"""RTKULD: algorithms 1 and 3 of the RTK paper as a NumPyro kernel."""

from collections.abc import Callable, Sequence
from typing import Any

from numpyro_rtk._checks import check_bool
from numpyro_rtk.core.inner import InnerSampler, check_inner
from numpyro_rtk.core.uld import ULD
from numpyro_rtk.kernels.annealed_kernel import AnnealedKernel
from numpyro_rtk.noise import Ladder

__all__ = ["RTKULD"]


class RTKULD(AnnealedKernel):
    r"""Annealed runs of reverse transition kernels with underdamped Langevin steps.

    **What the draws are.** As published (``adjusted=False``, the default):
    *approximate*. Raw annealed draws, biased by the step size and the number of segments;
    no weight or Metropolis test can repair them, and R-hat, which compares independent
    draws of the same biased law, will not show it. It needs a score only. With
    ``adjusted=True`` the inner steps are Metropolis-adjusted, and with ``model=`` the
    chain is then corrected like :class:`RTKMALA`'s and *exact*.

    Args:
        model: see :class:`RTKMALA`.
        score: see :class:`RTKMALA`; a :class:`~numpyro_rtk.ScoreModel` suffices.
        num_segments: K; 24 with ``model``, 13 with ``score``.
        num_steps: inner steps per segment, see :class:`RTKMALA`. Default: ``(1, 1)`` with
            ``model``, ``(6,)`` with ``score``.
        step_size: tau, in units of the time in which a reverse kernel of unit spread
            turns over; adapted in warm-up when ``adjusted``, else by default 0.2 after
            the multistep predictor and 0.3 otherwise.
        target_accept_prob: aim of that adaptation.
        ladder: see :class:`RTKMALA`.
        inner: :class:`~numpyro_rtk.ULD`, with its friction in the same units.
        adjusted: see above.
        corrected: see :class:`RTKMALA`; requires ``adjusted=True``.
        num_candidates: P, fresh runs per corrected draw.
        predictor: see :class:`RTKMALA`.
        path: see :class:`RTKMALA`.
        forward_mode_differentiation: see :class:`RTKMALA`.

    Raises:
        ValueError, TypeError: as :class:`RTKMALA`.

    References:
        X. Huang et al., *Reverse Transition Kernel*, NeurIPS 2024, arXiv 2405.16387.
    """

    def __init__(
        self,
        model: Callable | None = None,
        *,
        score: Any = None,
        num_segments: int | None = None,
        num_steps: int | Sequence[int] | None = None,
        step_size: float | None = None,
        target_accept_prob: float | None = None,
        ladder: Ladder | None = None,
        inner: ULD | None = None,
        adjusted: bool = False,
        corrected: bool | None = None,
        num_candidates: int = 4,
        predictor: str | None = None,
        path: str | None = None,
        forward_mode_differentiation: bool = False,
    ):
        inner = ULD() if inner is None else inner
        check_inner(inner)
        if not isinstance(inner, ULD):
            raise TypeError(
                "`inner` must be an `rtk.ULD` in RTKULD, which knows it with and without a "
                f"Metropolis test; got {inner!r}. RTKMALA takes any that has one."
            )
        check_bool("adjusted", adjusted)
        if num_steps is None and score is not None:
            num_steps = (6,)  # a step costs one evaluation, half of RTKMALA's
        super().__init__(
            model,
            score=score,
            inner=inner if adjusted else inner.unadjusted(),
            num_segments=num_segments,
            num_steps=num_steps,
            step_size=step_size,
            target_accept_prob=target_accept_prob,
            ladder=ladder,
            corrected=corrected,
            num_candidates=num_candidates,
            predictor=predictor,
            path=path,
            forward_mode_differentiation=forward_mode_differentiation,
        )

    @classmethod
    def _published_inner(cls) -> InnerSampler:
        return ULD()
