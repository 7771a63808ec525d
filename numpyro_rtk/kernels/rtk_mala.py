"""RTKMALA: algorithms 1 and 2 of the RTK paper as a NumPyro kernel."""

from collections.abc import Callable, Sequence
from typing import Any

from numpyro_rtk.core.inner import InnerSampler, check_inner
from numpyro_rtk.core.mala import MALA
from numpyro_rtk.kernels.annealed_kernel import AnnealedKernel
from numpyro_rtk.noise import Ladder

__all__ = ["RTKMALA"]


class RTKMALA(AnnealedKernel):
    r"""Annealed runs of reverse transition kernels with Metropolis-adjusted inner steps.

    **What the draws are.** With ``model=``: *exact*. Each draw runs ``num_candidates``
    fresh annealed runs and accepts one of them against the current draw's own backward
    pass, so the chain's stationary law is the model's posterior whatever the network
    learned; a poor network or a hard posterior costs acceptance (``accept_prob``), which
    R-hat and ESS show. With ``corrected=False``: *weighted*, independent raw draws of the
    paper's algorithm with their ``log_weight``; without the weights they are biased. With
    ``score=``: *approximate*, independent draws without weights that come close to the
    density in few evaluations; ``predictor="gaussian"`` gives weighted ones,
    ``corrected=True`` an exact chain.

    In high dimension (measured: beyond about ten informative directions) all candidates
    tend to be refused: look at ``accept_prob``.

    Example::

        def model(y):
            x = numpyro.sample("x", rtk.LearnedPrior(density))
            numpyro.sample("y", dist.Normal(x[0], 0.1), obs=y)

        mcmc = MCMC(rtk.RTKMALA(model), num_warmup=200, num_samples=1000)
        mcmc.run(jax.random.key(0), y)

    Args:
        model: a NumPyro model with one or more :class:`~numpyro_rtk.LearnedPrior` sites
            (plates, ordinary sites of any continuous support and deterministic sites are
            fine). Exactly one of ``model`` and ``score`` is given.
        score: a density to draw from by itself (an EnergyModel, a GaussianMixture, any
            object with ``event_shape``, ``score(x, t)``, ``log_density(x, t)``).
            ``get_samples()`` is then one array ``(n, *event_shape)``.
        num_segments: K; 24 with ``model``, 13 with ``score``.
        num_steps: inner steps per segment: one integer for all, or a sequence from the
            lowest segment upwards. Default: ``(1, 1)`` with ``model``, ``(3,)`` with
            ``score``; elsewhere another segment buys more than an inner step.
        step_size: of the leapfrog steps, in units of each reverse kernel's own spread;
            None adapts one per segment in warm-up.
        target_accept_prob: aim of that adaptation; None is .94 after the multistep
            predictor, else .8.
        ladder: ``"log_snr"`` (default with ``model``), ``"angle"`` (default with
            ``score``), ``"uniform"``, a function of the number of segments, or the times
            themselves, ``(K + 1,)`` from 0 up.
        corrected: see above; None is True with ``model`` and False with ``score``.
        num_candidates: P, fresh runs per corrected draw.
        inner: how inner steps move: :class:`~numpyro_rtk.MALA`, or a Metropolis-adjusted
            sampler of your own. ``MALA(acceptance="simpson")`` is for densities without an
            energy; such draws have no weights.
        predictor: how a segment is crossed. ``"gaussian"``: by a draw from its Gaussian
            start, which gives weights; inner steps then target reverse kernels.
            ``"multistep"``: by a deterministic rule with the clean values of all levels
            above, whose coefficients are fitted once, before the first draw, along 256
            finely solved trajectories (about 16,000 evaluations for all chains that run
            in one call); inner steps, of the lowest segment alone, then target the
            density itself. With ``score=`` only, and its default there unless
            ``num_steps`` asks for steps in other segments.
        path: ``"gaussian"`` samples a model without a learned prior, annealed from a
            Gaussian fitted in warm-up.
        forward_mode_differentiation: as of NUTS: differentiate the model forwards, which
            a ``lax.while_loop`` in it asks for. Costs grow with the number of coordinates.

    Raises:
        ValueError, TypeError: for any option or combination outside the above, at
            construction; for a model that cannot be sampled, at ``run``.

    References:
        X. Huang, D. Zou, H. Dong, Y. Zhang, Y. Ma, T. Zhang, *Reverse Transition Kernel*,
        NeurIPS 2024, arXiv 2405.16387. The correction: R. Neal, *Annealed Importance
        Sampling*, 2001; multiple-try form as in C. Andrieu, A. Doucet, R. Holenstein,
        *Particle MCMC*, JRSS-B 2010.
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
        corrected: bool | None = None,
        num_candidates: int = 4,
        inner: InnerSampler | None = None,
        predictor: str | None = None,
        path: str | None = None,
        forward_mode_differentiation: bool = False,
    ):
        inner = MALA() if inner is None else inner
        check_inner(inner)
        if not inner.is_adjusted:
            raise ValueError(
                "`inner` must have a Metropolis test (`is_adjusted`) in RTKMALA; got "
                f"{inner!r}."
            )
        super().__init__(
            model,
            score=score,
            inner=inner,
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
        return MALA(num_leapfrog=1)
