"""``rtk.check_modes``: an independent look for modes that a finished run has missed."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from numpyro.infer import MCMC

from numpyro_rtk._checks import check_positive_int
from numpyro_rtk.core.exchange.modes import membership
from numpyro_rtk.core.warmup.adapt import Frame
from numpyro_rtk.core.warmup.population import narrowest_found
from numpyro_rtk.diagnostics.evidence import log_evidence
from numpyro_rtk.diagnostics.finished import arguments_of
from numpyro_rtk.diagnostics.population import ENOUGH_ANCESTORS, lost_regions
from numpyro_rtk.kernels.problem.problem import Problem
from numpyro_rtk.kernels.replica_exchange import RTKReplicaExchange

__all__ = ["ModeCheck", "check_modes"]

_MOST_DRAWS = 4000  # of each chain
_KEY = 0x6D6F  # where none is given
_SHOWN = 0.005  # share of a region that is worth a line
# Shares of regions that are parts of one mode differ by less than this by chance, or by
# less than so many errors.
_SHARES_APART, _SHARES_ERRORS = 0.1, 4.0
_EVIDENCES_APART, _EVIDENCES_ERRORS = 0.2, 3.0  # the same of log evidences, nats


class ModeCheck(NamedTuple):
    """What :func:`check_modes` found; ``print`` it.

    Attributes:
        share: of each region among the population's particles, ``(regions,)``, largest
            first; regions are the components of a mixture that was fitted to them.
        share_error: standard errors.
        run_share: of the run's draws.
        run_share_error: standard errors, from the spread between chains.
        places: where each region lies, in words.
        log_evidence: of the population, and its standard error, nats.
        run_log_evidence: of the run; NaN where its kernel gives none.
        num_particles: that went down.
        num_ancestors: of them that the last ones go back to; with few, shares and
            evidence have no error that can be believed, and nothing is told from them.
        narrowest: relative width of modes that so many would find for sure.
        problems: sentences that say what the run has missed; empty if nothing.
    """

    share: np.ndarray
    share_error: np.ndarray
    run_share: np.ndarray
    run_share_error: np.ndarray
    places: tuple[str, ...]
    log_evidence: tuple[float, float]
    run_log_evidence: tuple[float, float]
    num_particles: int
    num_ancestors: int
    narrowest: float
    problems: tuple[str, ...]

    def __str__(self) -> str:
        """The report."""
        pair = lambda value: f"{value[0]:.3f} +- {value[1]:.3f}"
        lines = [
            f"{self.num_particles} fresh particles: log evidence "
            f"{pair(self.log_evidence)} (run: {pair(self.run_log_evidence)})"
        ]
        for i, place in enumerate(self.places):
            if max(self.share[i], self.run_share[i]) > _SHOWN:
                lines.append(
                    f"around {place}: {self.share[i]:.3f} +- {self.share_error[i]:.3f} of "
                    f"the particles, {self.run_share[i]:.3f} +- "
                    f"{self.run_share_error[i]:.3f} of the draws"
                )
        nothing = (
            "no mode is missing that these particles found; not excluded are modes less "
            f"than {self.narrowest:.2g} times as wide, in all directions that the data "
            "inform",
        )
        return "\n".join([*lines, *(f"- {text}" for text in self.problems or nothing)])


def check_modes(
    mcmc: MCMC, *, key: jax.Array | None = None, num_particles: int = 8192
) -> ModeCheck:
    """Look for modes with a fresh population, and hold a finished run against it.

    The population goes down the noise ladder of :class:`RTKReplicaExchange` from the
    prior, with keys of its own and more particles than any run starts with (two runs, at
    two settings of the path). It is as independent of the chains as can be had: nothing
    of the run enters but its draws. For runs of any kernel on a NumPyro model, NUTS too.

    What it says: which modes the run has missed or weighs otherwise, with errors. What it
    cannot say: that there is none narrower than ``narrowest``.

    Args:
        mcmc: after ``run``.
        key: random key; None for a fixed one.
        num_particles: of each of the two runs.

    Returns:
        Numbers and sentences.

    Raises:
        TypeError: where the run has no NumPyro model, or the model no density.
        ValueError: for ``num_particles`` below 1, and for a run that was not made with
            ``MCMC.run`` in this process (its arguments are not known).
    """
    check_positive_int("num_particles", num_particles)
    model, args, kwargs = _model_and_arguments(mcmc)
    kernel = RTKReplicaExchange(model, num_particles=num_particles)
    problem = kernel.prepare(jr.key(0), args, kwargs)
    # log densities count from those at a draw of the run
    plain = problem.frame()
    origin = _positions(mcmc, problem, plain, args, kwargs)[0][0]
    frame = plain._replace(origin=origin)

    @jax.jit
    def look(key):
        shared, _ = kernel.look(key, args, kwargs, origin)
        return shared, problem.bind(args, kwargs, frame).log_offset

    shared, log_offset = look(jr.key(_KEY) if key is None else key)
    chains = _positions(mcmc, problem, shared.frame, args, kwargs)
    by_chain = np.stack(
        [np.asarray(membership(shared.regions, rows)).mean(axis=0) for rows in chains]
    )
    places = kernel.places(shared, args, kwargs)
    num_particles = kernel.num_particles  # of both runs
    found = _compare(mcmc, num_particles, shared.found, log_offset, by_chain, places)
    return found._replace(problems=tuple(_problems(found)))


def _model_and_arguments(mcmc: MCMC) -> tuple[Any, tuple, dict]:
    """Of a finished run of a NumPyro model, by whichever kernel."""
    model = getattr(mcmc.sampler, "model", None)
    if model is None:
        raise TypeError(
            "`mcmc` must be a run of a NumPyro model; got one of a density. Its own draws "
            "are checked by `rtk.check_prior`."
        )
    arguments = arguments_of(mcmc)
    if arguments is None:
        raise ValueError(
            "`mcmc` must be finished, with the arguments that it ran with; got one that "
            "has not run. Call `mcmc.run(...)` first."
        )
    return model, *arguments


def _compare(
    mcmc: MCMC, num_particles: int, of_population: Any, log_offset, by_chain, places
) -> ModeCheck:
    """All numbers: what the population found beside the run's shares ``(chains, R)``."""
    num_chains = len(by_chain)
    run_error = np.full(by_chain.shape[1], np.nan)
    if num_chains > 1:
        run_error = by_chain.std(axis=0, ddof=1) / np.sqrt(num_chains)
    order = np.argsort(-np.asarray(of_population.share))
    evidence, evidence_error = (float(x) for x in of_population[:2])
    evidence += float(np.asarray(log_offset, float).sum())
    is_own = isinstance(mcmc.sampler, RTKReplicaExchange)
    num_informed = max(float(of_population.num_informed), 1.0)
    return ModeCheck(
        share=np.asarray(of_population.share, float)[order],
        share_error=np.asarray(of_population.share_error, float)[order],
        run_share=by_chain.mean(axis=0)[order],
        run_share_error=run_error[order],
        places=tuple(places[i] for i in order),
        log_evidence=(evidence, evidence_error),
        run_log_evidence=log_evidence(mcmc) if is_own else (np.nan, np.nan),
        num_particles=num_particles,
        num_ancestors=int(of_population.num_ancestors),
        narrowest=narrowest_found(num_particles, num_informed),
        problems=(),
    )


def _positions(
    mcmc: Any, problem: Problem, frame: Frame, args: tuple, kwargs: dict
) -> list[jax.Array]:
    """Draws of each chain as standardised positions, ``(draws, dim)``."""
    bound = problem.bind(args, kwargs, frame)
    samples = mcmc.get_samples(group_by_chain=True)
    names = [site.name for site in problem.noted.flat.sites]

    def one(values):
        return bound.flatten(problem.unconstrain(args, kwargs, values))

    num_draws = len(jax.tree.leaves(samples)[0][0])
    chosen = np.linspace(0, num_draws - 1, min(num_draws, _MOST_DRAWS)).astype(int)
    kept = {name: samples[name][:, chosen] for name in names}
    flat = jax.jit(jax.vmap(jax.vmap(one)))(kept)
    return list(jnp.asarray(flat))


def _problems(found: ModeCheck) -> list[str]:
    if found.num_ancestors < ENOUGH_ANCESTORS:
        return [
            f"Nothing can be told: the particles go back to {found.num_ancestors} at the "
            "top, so that their shares are those of a few. Take more `num_particles`; in "
            "many dimensions run the chains longer instead, from other keys."
        ]
    problems = []
    lost = lost_regions(found.share, found.share_error, found.run_share)
    for i in np.flatnonzero(lost):
        problems.append(
            f"The run has missed a mode around {found.places[i]}: it has "
            f"{found.share[i]:.2f} +- {found.share_error[i]:.2f} of the mass by the "
            f"particles, and {found.run_share[i]:.3f} of the draws. Run with "
            f"`RTKReplicaExchange(model, num_particles={found.num_particles})`, or longer."
        )
    errors = np.hypot(found.share_error, np.nan_to_num(found.run_share_error))
    # of what the run has at all: what it lacks it has spread over the rest
    expected = found.share / max(1.0 - float(found.share[lost].sum()), 1e-6)
    apart = np.abs(expected - found.run_share)
    differ = (apart > _SHARES_ERRORS * errors) & (apart > _SHARES_APART) & ~lost
    for i in np.flatnonzero(differ):
        problems.append(
            f"Run and particles weigh the mode around {found.places[i]} differently: "
            f"{found.run_share[i]:.2f} and {expected[i]:.2f} +- "
            f"{found.share_error[i]:.2f}. Run longer, and check again with more "
            "`num_particles`."
        )
    (value, error), (theirs, their_error) = found.log_evidence, found.run_log_evidence
    by_chance = _EVIDENCES_ERRORS * float(np.hypot(error, their_error))
    if abs(value - theirs) > max(by_chance, _EVIDENCES_APART):
        problems.append(
            f"The evidences differ: {theirs:.2f} of the run, {value:.2f} +- {error:.2f} of "
            "the particles."
        )
    return problems
