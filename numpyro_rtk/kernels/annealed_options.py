"""What the options of ``RTKMALA`` and ``RTKULD`` mean: checked, with defaults filled in."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from numpyro_rtk import draw
from numpyro_rtk._checks import (
    check_fraction,
    check_non_negative_int,
    check_positive,
    check_positive_int,
)
from numpyro_rtk.core.inner import InnerSampler
from numpyro_rtk.noise import Ladder, as_ladder

__all__ = ["Defaults", "Options", "resolve", "steps_per_segment"]

# Inner steps at level 0 remove the predictor's error of the energy faster when they are
# refused less (measured at 10 evaluations: .03 sd left at .94, .06 at .9 and below).
_TARGET_ACCEPT_PROB, _TARGET_AFTER_PREDICTOR = 0.8, 0.94


class Defaults(NamedTuple):
    """Options that differ between unconditional draws and posteriors."""

    num_segments: int
    num_steps: tuple[int, ...]
    ladder: Ladder


SCORE_DEFAULTS = Defaults(draw.NUM_SEGMENTS, (draw.NUM_STEPS,), draw.LADDER)
# A precise likelihood switches on at small noise, where the log ladder is the denser.
MODEL_DEFAULTS = Defaults(num_segments=24, num_steps=(1, 1), ladder="log_snr")


def steps_per_segment(
    num_steps: int | Sequence[int], num_segments: int
) -> tuple[int, ...]:
    """The kernels' ``num_steps=`` as one count per segment, lowest first.

    Args:
        num_steps: an integer for every segment alike, or a sequence from the lowest
            segment (next to the data) upwards; segments beyond its end get none.
        num_segments: K.

    Raises:
        ValueError: for negative counts, or more counts than segments.
        TypeError: for anything but integers.
    """
    if np.ndim(num_steps) == 0:
        check_non_negative_int("num_steps", num_steps)
        return (int(num_steps),) * num_segments  # type: ignore[arg-type]
    counts = list(num_steps)  # type: ignore[arg-type]
    for count in counts:
        check_non_negative_int("num_steps", count)
    if len(counts) > num_segments:
        raise ValueError(
            f"`num_steps` must have at most `num_segments` = {num_segments} entries; got "
            f"{len(counts)}."
        )
    return tuple(int(c) for c in counts) + (0,) * (num_segments - len(counts))


class Options(NamedTuple):
    """Of one kernel.

    Attributes:
        times: of the ladder, ``(K + 1,)``.
        num_steps: inner steps of each segment, lowest first.
        step_size: of the inner steps; None: adapted.
        target_accept_prob: aim of that.
        num_candidates: fresh runs per corrected draw.
        predictor: ``"gaussian"`` or ``"multistep"``.
        has_likelihood: whether there is a model.
        is_corrected: whether draws are accepted or refused, or raw runs.
        is_weighted: whether runs have weights.
    """

    times: np.ndarray
    num_steps: tuple[int, ...]
    step_size: float | None
    target_accept_prob: float
    num_candidates: int
    predictor: str
    has_likelihood: bool
    is_corrected: bool
    is_weighted: bool

    @property
    def num_segments(self) -> int:
        """K."""
        return len(self.times) - 1


def resolve(
    inner: InnerSampler,
    has_likelihood: bool,
    *,
    num_segments: int | None,
    num_steps: int | Sequence[int] | None,
    step_size: float | None,
    target_accept_prob: float | None,
    ladder: Ladder | None,
    corrected: bool | None,
    num_candidates: int,
    predictor: str | None,
) -> Options:
    """The kernel's arguments as :class:`Options`.

    Raises:
        ValueError, TypeError: for any value or combination that makes no sense.
    """
    check_positive_int("num_candidates", num_candidates)
    if target_accept_prob is not None:
        check_fraction("target_accept_prob", target_accept_prob)
    if step_size is not None:
        check_positive("step_size", step_size)
    times, steps = _segments(has_likelihood, num_segments, num_steps, ladder)
    is_corrected = _is_corrected(corrected, inner, has_likelihood)
    predictor = _choose_predictor(
        predictor, steps, not has_likelihood and not is_corrected
    )
    is_predicted = predictor == "multistep"
    if target_accept_prob is None:
        target_accept_prob = (
            _TARGET_AFTER_PREDICTOR if is_predicted else _TARGET_ACCEPT_PROB
        )
    return Options(
        times=times,
        num_steps=steps,
        step_size=step_size,
        target_accept_prob=target_accept_prob,
        num_candidates=num_candidates,
        predictor=predictor,
        has_likelihood=has_likelihood,
        is_corrected=is_corrected,
        is_weighted=inner.is_exact and not is_predicted,
    )


def _segments(
    has_likelihood: bool,
    num_segments: int | None,
    num_steps: int | Sequence[int] | None,
    ladder: Ladder | None,
) -> tuple[np.ndarray, tuple[int, ...]]:
    """Times ``(K + 1,)`` and inner steps per segment."""
    if num_segments is not None:
        check_positive_int("num_segments", num_segments)
    defaults = MODEL_DEFAULTS if has_likelihood else SCORE_DEFAULTS
    times = as_ladder(
        defaults.ladder if ladder is None else ladder,
        defaults.num_segments if num_segments is None else num_segments,
    )
    found = len(times) - 1
    if num_segments is not None and found != num_segments:
        raise ValueError(
            f"`ladder` must have `num_segments` + 1 = {num_segments + 1} times; got "
            f"{len(times)}. Give one of the two."
        )
    if num_steps is None:
        num_steps = defaults.num_steps[:found]
    return times, steps_per_segment(num_steps, found)


def _is_corrected(corrected: bool | None, inner: InnerSampler, has_model: bool) -> bool:
    """The kernels' ``corrected=``, its default filled in."""
    if corrected is None:
        return has_model and inner.is_exact
    if corrected and not inner.is_adjusted:
        raise ValueError(
            "`corrected` must be False with unadjusted inner steps: their law has no "
            "density, so no Metropolis test can repair it. Pass `adjusted=True`, or "
            "accept approximate draws with `corrected=False`."
        )
    if corrected and not inner.uses_energy:
        raise ValueError(
            "`corrected=True` needs inner steps whose acceptance reads the energy: one "
            f"that is estimated from scores leaves a bias; got {inner!r}."
        )
    return corrected


def _choose_predictor(
    predictor: str | None, num_steps: tuple[int, ...], is_free: bool
) -> str:
    """The kernels' ``predictor=``; ``is_free`` where no weight is needed."""
    at_zero_only = not any(num_steps[1:])
    if predictor is None:
        return "multistep" if is_free and at_zero_only else "gaussian"
    if predictor not in ("gaussian", "multistep"):
        raise ValueError(
            '`predictor` must be "gaussian" or "multistep" (or None for the default); '
            f"got {predictor!r}."
        )
    if predictor == "multistep" and not is_free:
        raise ValueError(
            '`predictor` must be "gaussian" with `model=` or `corrected=True`: the '
            "deterministic predictor has no density for a weight, and knows noised "
            "densities only."
        )
    if predictor == "multistep" and not at_zero_only:
        raise ValueError(
            "`num_steps` must have steps in the lowest segment only with `predictor="
            f'"multistep"`, such as `num_steps=(3,)`; got {num_steps}. The '
            'steps of other segments need `predictor="gaussian"`.'
        )
    return predictor
