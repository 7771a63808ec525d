"""``rtk.check_prior``: can this learned prior be trusted? In numbers and in words."""

from typing import Any, NamedTuple, overload

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from numpyro.infer import MCMC

from numpyro_rtk.density import (
    Density,
    DensityWithEnergy,
    check_density,
    has_energy,
    loc_and_scale,
)
from numpyro_rtk.diagnostics.comparison import (
    NUM_GROUPS,
    energy_distance,
    gaussian_log_density,
    group_tv,
    groups_of,
    mean_and_error,
    mixture_log_density,
    share_memorised,
)
from numpyro_rtk.diagnostics.evidence import log_evidence
from numpyro_rtk.diagnostics.rhat import rhat_of
from numpyro_rtk.diagnostics.score import ScoreCheck, check_score
from numpyro_rtk.kernels.replica_exchange import RTKReplicaExchange
from numpyro_rtk.sites import (
    columns_of,
    constraint_of,
    is_frame,
    labels_of_sites,
    unconstrain_rows,
)
from numpyro_rtk.training.data import check_variation
from numpyro_rtk.training.no_density import Doubt, find_doubts, labels_of

__all__ = ["PriorCheck", "check_prior"]

_CHAINS, _WARMUP, _DRAWS = 32, 100, 60
_FEWEST_ROWS = 100
_SMALLEST_NOISE = 0.02  # of a density that names none, in standard deviations

# What counts as a problem; beside it, how many standard errors it must be.
_LARGEST_RHAT = 1.2  # of 60 draws a chain; with good mixing it is below 1.1
_WORSE_ERRORS = 3.0  # than a Gaussian, and than a mixture ...
_WORSE_THAN_MIXTURE = 0.1  # ... by nats: EM fits the held-out rows a little better
_LARGEST_OFFSET, _OFFSET_ERRORS = 0.3, 4.0  # nats
_GROUPS_FACTOR, _GROUPS_OFF = 2.5, 0.03  # times what chance gives, and beyond it
_MEAN_OFF = 0.2  # standard deviations
_LEAST_SD, _LARGEST_SD = 0.8, 1.25  # ratios
_MEMORISED = 0.75  # share of draws; 0.5 is ideal


class PriorCheck(NamedTuple):
    """What :func:`check_prior` found; ``print`` it, or ``plot`` it.

    Attributes:
        held_out: mean log density of the held-out rows and its standard error, nats.
        gaussian: gain over a Gaussian fitted to half of the held-out rows, on the other
            half, and its standard error, nats.
        mixture: the same over a Gaussian mixture (the best of 1 to 8 components).
        offset: log of the density's integral, 0 if it is normalised, and its standard
            error, nats, from exchanges in both directions along the noise ladder.
        group_tv: total variation between the shares of groups (k-means of the held-out
            rows) among the model's own draws and among the held-out rows, and what two
            samples of one law would give.
        mean_off: largest error of a coordinate's mean, in standard deviations.
        sd_ratio: smallest and largest ratio of standard deviations.
        energy_distance: between draws and held-out rows, and between the halves of the
            held-out rows.
        memorised: share of draws that are closer to a training row than a held-out row is
            at the median; 0.5 is ideal. NaN without ``training``.
        rhat: largest split R-hat of the draws (coordinates, shares of groups, share above
            the rows' median log density), half of whose chains start at held-out rows.
            Above 1.2 what depends on the draws says nothing about the density.
        problems: sentences that say what is wrong and what to change.
        draws: the model's own, unconstrained, ``(n, dim)``.
        rows: the held-out ones, ``(m, dim)``.
        log_density: of the held-out rows, ``(m,)``.
        draws_log_density: of the draws, ``(n,)``.
    """

    held_out: tuple[float, float]
    gaussian: tuple[float, float]
    mixture: tuple[float, float]
    offset: tuple[float, float]
    group_tv: tuple[float, float]
    mean_off: float
    sd_ratio: tuple[float, float]
    energy_distance: tuple[float, float]
    memorised: float
    rhat: float
    problems: tuple[str, ...]
    draws: np.ndarray
    rows: np.ndarray
    log_density: np.ndarray
    draws_log_density: np.ndarray

    def __str__(self) -> str:
        """The report."""
        pair = lambda value: f"{value[0]:+.3f} +- {value[1]:.3f}"
        lines = [
            f"held-out log density: {pair(self.held_out)} nats",
            f"  over a Gaussian: {pair(self.gaussian)}",
            f"  over a Gaussian mixture: {pair(self.mixture)}",
            f"log integral of the density (0: normalised): {pair(self.offset)}",
            f"own draws against held-out rows: group weights off by {self.group_tv[0]:.3f} "
            f"TV (two samples of one law: {self.group_tv[1]:.3f}), means by "
            f"{self.mean_off:.2f} sd, sd ratio "
            f"{self.sd_ratio[0]:.2f}-{self.sd_ratio[1]:.2f}",
            f"R-hat of the own draws: {self.rhat:.2f}",
            f"energy distance: {self.energy_distance[0]:.4f} (halves of the held-out rows: "
            f"{self.energy_distance[1]:.4f})",
        ]
        if np.isfinite(self.memorised):
            lines.append(
                f"nearer to a training row than held-out rows: {self.memorised:.2f}"
            )
        problems = self.problems or ("nothing found",)
        return "\n".join([*lines, *(f"- {problem}" for problem in problems)])

    def plot(self) -> Any:
        """A figure: draws beside held-out rows, and both laws of the log density."""
        from numpyro_rtk.diagnostics.plots import plot_prior_check

        return plot_prior_check(self)


@overload
def check_prior(
    model_: DensityWithEnergy, held_out: Any, *, training: Any = None, key: Any = None
) -> PriorCheck: ...


@overload
def check_prior(
    model_: Density, held_out: Any, *, training: Any = None, key: Any = None
) -> ScoreCheck: ...


def check_prior(
    model_: Any, held_out: Any, *, training: Any = None, key: jax.Array | None = None
) -> PriorCheck | ScoreCheck:
    """Check a learned density, or a score, against rows that it was not trained on.

    A density's own draws come from :class:`RTKReplicaExchange`, exact for the density
    as it is; so what differs from the held-out rows is the density's error (or theirs:
    every comparison has the error that two samples of one law would have beside it).

    A score alone is checked by what it is: at every noise level, how well it finds the
    noise that was added to held-out rows, and whether what it leaves has the mean zero
    that Tweedie's formula gives it. Where it has not, other readings of the same network
    (another prediction, sign, schedule or scale) are tried on the same rows, and one that
    is clearly better is named. Weights of modes far apart are not seen by a score.

    Args:
        model_: an :class:`EnergyModel`, any density with an energy, or with a score alone.
        held_out: rows of the same kind as those it was trained on: an array, or a dict
            of named sites. At least 100 rows.
        training: the training rows; says whether a model with an energy has memorised
            them.
        key: random key; None for a fixed one.

    Returns:
        Numbers, sentences, and what a figure needs: a :class:`PriorCheck`, or of a score
        alone a :class:`~numpyro_rtk.diagnostics.score.ScoreCheck`.

    Raises:
        TypeError: for what is no density.
        ValueError: for rows of another shape, outside the support, too few, or with a
            coordinate that never changes.
    """
    check_density("model_", model_)
    rows = _rows("held_out", held_out, model_)
    if len(rows) < _FEWEST_ROWS:
        raise ValueError(
            f"`held_out` must have at least {_FEWEST_ROWS} rows; got {len(rows)}."
        )
    doubts = _no_density(_doubts(rows, model_))
    rng = np.random.default_rng(0)
    rows = rows[rng.permutation(len(rows))]
    key = jr.key(0) if key is None else key
    if not has_energy(model_):
        found = check_score(key, model_, rows)
        return found._replace(problems=(*doubts, *found.problems))
    shape = tuple(model_.event_shape)
    log_density_of = jax.jit(
        jax.vmap(lambda x: model_.log_density(x.reshape(shape), 0.0))
    )
    evaluate = lambda x: np.asarray(log_density_of(jnp.asarray(x)), float)
    start = _start(model_, rows, evaluate)
    chains, offset = _own_draws(key, model_, start)
    memorised = np.nan
    if training is not None:
        known = _rows("training", training, model_)
        memorised = share_memorised(chains.reshape(-1, rows.shape[1]), rows, known)
    found = _compare(chains, rows, evaluate, rng)._replace(
        offset=offset, memorised=memorised
    )
    return found._replace(problems=(*doubts, *_problems(found)))


def _compare(chains: np.ndarray, rows: np.ndarray, evaluate, rng) -> PriorCheck:
    """All numbers but those that need the run or the training rows."""
    draws = chains.reshape(-1, rows.shape[1])
    log_density, draws_log_density = evaluate(rows), evaluate(draws)
    half = len(rows) // 2
    gains = [
        mean_and_error(log_density[half:] - rival(rows[:half], rows[half:]))
        for rival in (gaussian_log_density, mixture_log_density)
    ]
    spread = rows.std(axis=0)
    ratio = draws.std(axis=0) / spread
    some = draws[rng.choice(len(draws), min(len(draws), len(rows)), replace=False)]
    groups = groups_of(draws / spread, rows / spread, rng)
    above = draws_log_density > np.median(log_density)
    return PriorCheck(
        held_out=mean_and_error(log_density),
        gaussian=gains[0],
        mixture=gains[1],
        offset=(np.nan, np.nan),
        group_tv=group_tv(*groups, rng),
        mean_off=float(np.abs((draws.mean(0) - rows.mean(0)) / spread).max()),
        sd_ratio=(float(ratio.min()), float(ratio.max())),
        energy_distance=(
            energy_distance(some / spread, rows / spread),
            energy_distance(rows[:half] / spread, rows[half:] / spread),
        ),
        memorised=np.nan,
        rhat=_rhat(chains, groups[0], above),
        problems=(),
        draws=draws,
        rows=rows,
        log_density=log_density,
        draws_log_density=draws_log_density,
    )


def _rows(argument: str, values: Any, model_: Any) -> np.ndarray:
    """Unconstrained rows ``(n, dim)``."""
    sites = getattr(model_, "sites", None)
    if is_frame(values):
        values = columns_of(argument, values)
    if sites is not None:
        supports = {site.name: constraint_of(site.support) for site in sites}
        if isinstance(values, dict):
            missing = [site.name for site in sites if site.name not in values]
            if missing:
                raise ValueError(
                    f"`{argument}` must hold every site that was learned; got none of "
                    f"{missing}."
                )
            values = {site.name: values[site.name] for site in sites}
        values, _ = unconstrain_rows(values, supports)
    array = np.asarray(values, float)
    shape = tuple(model_.event_shape)
    if array.shape[1:] != shape or not np.all(np.isfinite(array)):
        raise ValueError(
            f"`{argument}` must be finite rows of shape (n, *{shape}); got shape "
            f"{array.shape}. Give rows of the kind that the model was trained on."
        )
    return array.reshape(len(array), -1)


def _doubts(rows: np.ndarray, model_: Any) -> list[Doubt]:
    """Whether the rows, in the order in which they were given, have a density."""
    spread = rows.std(axis=0)
    check_variation(spread, np.abs(rows).max(axis=0), "`held_out`")
    noise = _SMALLEST_NOISE * spread
    if hasattr(model_, "noise_range"):
        noise = model_.noise_range[0] * np.ravel(np.asarray(model_.scale, float))
    sites = getattr(model_, "sites", None)
    shape = tuple(model_.event_shape)
    labels = labels_of(shape) if sites is None else labels_of_sites(sites)
    return find_doubts(rows, noise, labels)


def _start(model_: Any, rows: np.ndarray, evaluate) -> np.ndarray | None:
    """Where the chains start, ``(chains, dim)``: at held-out rows, and at noise, by turns.

    Where the exchange does not mix, as with a mode far narrower than the lowest level, the
    two halves differ. None where the density has no value at any row.
    """
    loc, scale = (np.ravel(np.asarray(a, float)) for a in loc_and_scale(model_))
    usable = rows[np.isfinite(evaluate(rows))]
    if len(usable) == 0:
        return None
    start = np.resize(usable, (_CHAINS, rows.shape[1]))
    noise = np.random.default_rng(1).normal(size=start.shape)
    noise = loc + scale * noise
    is_noise = (np.arange(_CHAINS) % 2 == 1) & np.isfinite(evaluate(noise))
    return np.where(is_noise[:, None], noise, start)


def _own_draws(
    key: jax.Array, model_: Any, start: np.ndarray | None
) -> tuple[np.ndarray, tuple[float, float]]:
    """Draws ``(chains, n, dim)`` and the log of the integral, with its error."""
    mcmc = MCMC(
        RTKReplicaExchange(score=model_),
        num_warmup=_WARMUP,
        num_samples=_DRAWS,
        num_chains=_CHAINS,
        chain_method="vectorized",
        progress_bar=False,
    )
    shape = (_CHAINS, *model_.event_shape)
    first = None if start is None else jnp.asarray(start.reshape(shape))
    mcmc.run(key, init_params=first)
    draws = np.asarray(mcmc.get_samples(group_by_chain=True), float)
    return draws.reshape(_CHAINS, _DRAWS, -1), log_evidence(mcmc)


def _rhat(chains: np.ndarray, group: np.ndarray, above: np.ndarray) -> float:
    """The largest split R-hat of what the report compares; inf for draws not finite."""
    if not np.all(np.isfinite(chains)):
        return np.inf
    indicators = np.column_stack([group[:, None] == np.arange(NUM_GROUPS), above])
    indicators = indicators.reshape(*chains.shape[:2], -1).astype(float)
    values = np.concatenate([chains, indicators], axis=-1)
    return float(np.max(rhat_of(values), initial=1.0))


def _no_density(doubts: list[Doubt]) -> list[str]:
    return [
        f"The held-out rows {'have' if severe else 'may have'} no density: {found}. "
        f"{remedy}, and train again."
        for found, remedy, severe in doubts
    ]


def _problems(found: PriorCheck) -> list[str]:
    """Sentences about the density; of draws that did not mix, one about them."""
    mixed = found.rhat <= _LARGEST_RHAT
    problems = [] if mixed else [_unmixed(found)]
    if not np.isfinite(found.offset[0]):
        problems.append(
            "No finite integral of the density was found: its own draws run away from the "
            "rows. Train on more rows, shorter, or with a smaller network."
        )
    if found.gaussian[0] < -_WORSE_ERRORS * found.gaussian[1]:
        problems.append(
            "A Gaussian fits the held-out rows better. Train on more rows, or with a "
            "smaller network."
        )
    gain, error = found.mixture
    if np.isfinite(gain) and gain < -_WORSE_THAN_MIXTURE - _WORSE_ERRORS * error:
        problems.append(
            f"A Gaussian mixture fits the held-out rows better by "
            f"{-gain:.2f} nats: `rtk.GaussianMixture` may be the better prior."
        )
    return problems + (_problems_of_draws(found) if mixed else [])


def _unmixed(found: PriorCheck) -> str:
    return (
        f"The draws to compare with have not mixed (R-hat {found.rhat:.2f}, with half of "
        "the chains started at held-out rows): whether weights of modes, means, spreads "
        "and the integral are right is not known. Draw longer with "
        "`rtk.RTKReplicaExchange(score=model_, num_levels=...)`, read `rtk.diagnose`, and "
        "compare; rows with scales far apart are better learned on their logarithms."
    )


def _problems_of_draws(found: PriorCheck) -> list[str]:
    """Sentences that lean on the draws, and so on their having mixed."""
    problems = []
    value, error = found.offset
    if np.isfinite(value) and abs(value) > max(_LARGEST_OFFSET, _OFFSET_ERRORS * error):
        problems.append(
            f"The density integrates to exp({value:+.2f}), not 1: evidences and "
            "comparisons of models are off by that much. Train longer, or on more rows."
        )
    tv, reference = found.group_tv
    if tv > max(_GROUPS_FACTOR * reference, reference + _GROUPS_OFF):
        problems.append(
            f"Weights of groups differ by {tv:.2f}, {tv / reference:.1f} times what chance "
            "gives: weights of modes are not to be trusted. Train longer, or on more rows."
        )
    low, high = found.sd_ratio
    if found.mean_off > _MEAN_OFF or not _LEAST_SD < low <= high < _LARGEST_SD:
        problems.append(
            "Means or spreads of the density's draws differ from the rows'."
        )
    if found.memorised > _MEMORISED:
        problems.append(
            f"{100 * found.memorised:.0f} % of the draws lie nearer to a training row than "
            "half of the held-out rows do: the rows are memorised. Train on more rows, "
            "shorter, or with a smaller network."
        )
    return problems
