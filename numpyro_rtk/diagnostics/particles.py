"""What a finished run of ``RTKParticleGibbs`` says about itself, for ``rtk.diagnose``."""

from typing import Any, NamedTuple

import numpy as np

from numpyro_rtk.diagnostics.evidence import UNKNOWN, log_evidence
from numpyro_rtk.diagnostics.finished import field_of, said
from numpyro_rtk.diagnostics.rhat import rhat_of

__all__ = ["ParticleDiagnosis", "diagnose_particles"]

# A chain that moves less often than this, and a level with a smaller part of its particles.
_STAYS, _DEGENERATE, _FEW = 0.5, 0.1, 4.0
_DIVERGING = 0.01
_LARGEST_RHAT, _FEW_DRAWS = 1.1, 100
_NAMED = 10  # rows that a sentence lists
# Nats that the law of a ladder may be from that of a very fine one, in all and by
# coordinate. At 1 the spreads of a mixture in 64 dimensions are a twentieth too narrow, at
# .1 by coordinate that of two that are correlated an eighth too wide.
_COARSE_LAW, _COARSE_BY_COORDINATE = 1.0, 0.1
# With fewer levels the estimate of it means nothing.
_LEAST_LEVELS = 8


class ParticleDiagnosis(NamedTuple):
    """What :func:`diagnose` found of particles; ``print`` it.

    Attributes:
        moved: share of the draws that moved, of each chain and each row that is decided
            about by itself, ``(chains, R)``.
        sample_size: mean effective number of particles at every level, ``(K + 1,)``.
        num_particles: n.
        law_gap: nats of the Kullback-Leibler divergence, about, of the law that a score
            network draws on this ladder from that on a very fine one; 0 with an energy,
            whose law is the learned density's.
        is_of_score: whether there was a score alone.
        dim: numbers of a draw.
        log_evidence: estimate and its standard error; see :func:`log_evidence`.
        rhat: largest split R-hat of a coordinate, deterministic sites' too; NaN for fewer
            than 100 draws.
        apart: which coordinate that is, such as ``x[3,0]``.
        problems: sentences that say what is wrong and what to change; empty if nothing.
        limits: what no diagnostic of this run can exclude.
    """

    moved: np.ndarray
    sample_size: np.ndarray
    num_particles: int
    law_gap: float
    is_of_score: bool
    dim: int
    log_evidence: tuple[float, float]
    rhat: float
    apart: str
    problems: tuple[str, ...]
    limits: tuple[str, ...]

    def __str__(self) -> str:
        """The report."""
        worst = int(self.sample_size.argmin())
        value, error = self.log_evidence
        lines = [
            f"particles: {self.num_particles} at {len(self.sample_size)} levels, least "
            f"effective number {self.sample_size[worst]:.1f} (level {worst})",
            f"draws that moved: {self.moved.mean():.2f} (fewest {self.moved.min():.2f})",
            f"log evidence: {value:.3f} +- {error:.3f}",
        ]
        problems = self.problems or ("no fault found; see also R-hat and ESS",)
        return "\n".join(lines + [f"- {text}" for text in (*problems, *self.limits)])


def diagnose_particles(mcmc: Any) -> ParticleDiagnosis:
    """The report of :func:`diagnose` on an ``RTKParticleGibbs`` run."""
    kernel = mcmc.sampler
    adapt = mcmc.last_state.adapt_state
    rhat, apart = _most_apart(mcmc.get_samples(group_by_chain=True))
    found = ParticleDiagnosis(
        moved=np.atleast_2d(np.asarray(mcmc.last_state.row_accept_prob)),
        sample_size=field_of(mcmc, "sample_size").mean(axis=(0, 1)),
        num_particles=kernel.num_particles,
        law_gap=float(np.max(np.asarray(adapt.law_gap), initial=0.0)),
        is_of_score=not kernel.has_energy,
        dim=mcmc.last_state.path.shape[-1],
        log_evidence=log_evidence(mcmc),
        rhat=rhat,
        apart=apart,
        problems=(),
        limits=(),
    )
    diverging = float(field_of(mcmc, "diverging").mean())
    says = (_says_stays, _says_apart, _says_degenerate, _says_unknown, _says_coarse)
    problems = list(said(says, found))
    times = np.atleast_2d(np.asarray(adapt.times))
    if not kernel.has_energy and np.any(np.ptp(times, axis=0) > 0.0):
        problems.append(
            "The chains have different levels, chosen beside different values of the other "
            "sites: with a score alone they have different laws. Give "
            "`likelihood_variance`."
        )
    if diverging > _DIVERGING:
        problems.append(
            f"{100 * diverging:.0f} % of the draws have no density: the likelihood is NaN "
            "or -inf where the learned prior is."
        )
    limits = _limits(kernel, found.law_gap)
    return found._replace(problems=tuple(problems), limits=limits)


def _says_stays(found: ParticleDiagnosis) -> str | None:
    if found.moved.min() >= _STAYS or found.num_particles == 1:
        return None
    num_rows, who = found.moved.shape[1], "Some chain moves"
    if num_rows > 1:
        rows = np.flatnonzero(found.moved.min(axis=0) < _STAYS)
        named = ", ".join(map(str, rows[:_NAMED])) + (", ..." * (len(rows) > _NAMED))
        who = f"{len(rows)} of {num_rows} rows ({named}) move, in some chain,"
    return (
        f"{who} in {100 * found.moved.min():.0f} % of its draws alone: no fresh "
        "particle is worth as much as the path it has. Give more `num_particles`, or more "
        "`num_levels`."
    )


def _most_apart(samples: Any) -> tuple[float, str]:
    """The largest R-hat among the draws' coordinates, and the name of that one.

    Of those that are finite in all draws: a deterministic site need not be.
    """
    sites = samples if isinstance(samples, dict) else {"x": samples}
    worst, name = np.nan, ""
    for site, value in sites.items():
        chains, draws, *shape = np.shape(value)
        if draws < _FEW_DRAWS:
            continue
        rhat = rhat_of(np.asarray(value, np.float64).reshape(chains, draws, -1))
        rhat = np.where(np.isnan(rhat), 1.0, rhat)
        place = int(np.argmax(rhat))
        if not rhat[place] <= worst:
            index = np.unravel_index(place, shape)
            worst = float(rhat[place])
            name = f"{site}[{','.join(map(str, index))}]" if index else site
    return worst, name


def _says_apart(found: ParticleDiagnosis) -> str | None:
    if not found.rhat > _LARGEST_RHAT:
        return None
    return (
        f"The chains do not agree: R-hat is {found.rhat:.2f} for `{found.apart}`. Draws "
        "move in the neighbourhood of a mode and seldom to another. Give four times the "
        "`num_particles`, or run longer."
    )


def _says_degenerate(found: ParticleDiagnosis) -> str | None:
    least = max(_DEGENERATE * found.num_particles, min(_FEW, found.num_particles))
    few = np.flatnonzero(found.sample_size < least)
    if not few.size:
        return None
    return (
        f"Few particles are left at level(s) {', '.join(map(str, few))} (effective "
        f"number {found.sample_size.min():.1f} of {found.num_particles}): modes may be "
        "lost there. "
        "Give more `num_levels`, so that one step does less, or more `num_particles`."
    )


def _says_unknown(found: ParticleDiagnosis) -> str | None:
    if found.log_evidence[1] < UNKNOWN:
        return None
    return (
        f"The log evidence is unknown: its error is {found.log_evidence[1]:.2f}. The "
        "particles of different draws do not agree; give more `num_particles`."
    )


def _says_coarse(found: ParticleDiagnosis) -> str | None:
    is_known = len(found.sample_size) > _LEAST_LEVELS  # level 0 is one of them
    largest = min(_COARSE_LAW, _COARSE_BY_COORDINATE * found.dim)
    if found.law_gap < largest and (is_known or not found.is_of_score):
        return None
    far = f"about {found.law_gap:.1f} nats" if is_known else "too far to say how far"
    return (
        "The ladder is too coarse: the law that the network draws on it is "
        f"{far} from that on a fine one. Give more `num_levels`: twice "
        "as many leave about a quarter of it."
    )


def _limits(kernel: Any, law_gap: float) -> tuple[str, ...]:
    narrow = (
        "Not excluded: modes far narrower than those found, which particles lose on the "
        "way down."
    )
    if kernel.has_energy:
        return (f"{narrow} `rtk.check_modes(mcmc)` looks again, with more.",)
    law = (
        "With a score alone the prior is what the network draws in "
        f"{kernel.num_levels} Gaussian steps: some {law_gap:.2g} nats (Kullback-"
        "Leibler) from what it draws in very many, which is "
        "the data's law as far as its scores are right. Run again with twice the "
        "`num_levels`, and see whether results move."
    )
    return law, f"{narrow} Run again with four times the `num_particles`."
