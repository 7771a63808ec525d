"""``rtk.fit``: from what a user has (arrays, a dict, a finished run) to a learned prior."""

import dataclasses
import os
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from numpyro import handlers
from numpyro.infer import MCMC

from numpyro_rtk.bounds import seeming_bounds, suggested
from numpyro_rtk.networks.base import AbstractEnergyNetwork, AbstractScoreNetwork
from numpyro_rtk.sites import (
    columns_of,
    constraint_of,
    is_frame,
    labels_of_sites,
    unconstrain_rows,
)
from numpyro_rtk.training.data import check_is_array
from numpyro_rtk.training.fit import FitResult, fit as fit_rows
from numpyro_rtk.training.options import Training

__all__ = ["fit"]


def fit(
    key: jax.Array,
    samples: Any,
    *,
    sites: Sequence[str] | None = None,
    support: Any = None,
    condition: Any = None,
    network: AbstractEnergyNetwork | AbstractScoreNetwork | None = None,
    num_steps: int = 4000,
    batch_size: int = 512,
    learning_rate: float | None = None,
    validation_fraction: float = 0.1,
    checkpoint: str | os.PathLike | None = None,
    progress_bar: bool = True,
    training: Training | None = None,
) -> FitResult:
    """Learn a density, at every noise level, from samples.

    Args:
        key: random key, typed or legacy; the result is a function of it.
        samples: a floating point array ``(n, *event_shape)``; a dict of such arrays or
            a DataFrame (its columns are the sites), one joint density; or yesterday's
            posterior: a finished ``numpyro.infer.MCMC`` (its latent sites and those of
            ``learned_sites``, with their supports), InferenceData or a DataTree (all
            variables of the group ``posterior``). A ``np.memmap`` may be larger than the
            memory: it is read in pieces, and each step takes rows from all over it.
        sites: names to take, of a dict or a run; None takes all. For an ``MCMC`` a
            deterministic site may be named as well; its support must then be given,
            unless ``learned_sites`` recorded it.
        support: a NumPyro constraint (of a dict or a run: a dict of them by name). The
            density is learned of unconstrained values, through NumPyro's ``biject_to``;
            what is not named is real. Draws that seem to have bounds and no support are
            refused of InferenceData and a DataTree, which carry none, and of others get
            a warning; ``constraints.real`` takes them as they are.
        condition: numbers ``(n, *condition_shape)``, one row for each of the samples: the
            density learned is p(x | c), for :class:`LearnedPrior` with ``condition=``.
            Categories are given as one column of 0 and 1 each.
        network: an energy network, trained by dual score matching, or a score network,
            trained by denoising score matching. None: an :class:`EnergyMLP` of its
            default size; :class:`EnergyUNet` is for images. Its event shape is that of
            the unconstrained values: of several sites one vector; its condition shape
            that of ``condition``.
        num_steps: gradient steps, at most.
        batch_size: noisy points a step.
        learning_rate: the largest; it rises over the first 5 % of the steps and falls
            to 0 along a cosine. None: .005, or what ``Training(optimizer=...)`` has.
        validation_fraction: of the rows, held out to choose the weights. Draws of an
            ``MCMC`` run are correlated, so that rows close by are no fresh sample.
        checkpoint: a file to write at every evaluation. Where it is there already, by
            an interrupted call with the same arguments, training goes on from it, to
            the same result as without the interruption (bit for bit on the CPU). An
            ``optimizer`` is told from another by its first state and by the program of
            its step, constants included; what Python would compute meanwhile (a
            callback) is not seen.
        progress_bar: shown unless the environment variable CI is set.
        training: all that is seldom changed, a :class:`Training`: patience, averaging,
            standardisation, range of noise, the base's components, the optimiser, and
            where the arrays lie. None: its defaults.

    Returns:
        A :class:`FitResult`, that unpacks as ``model, history``: the
        :class:`EnergyModel` or :class:`ScoreModel` with the best held-out loss, and
        arrays ``step``, ``loss``, ``validation_loss`` and ``wall_time`` (seconds), one
        entry for each evaluation, with the scalars ``best_step`` and ``stopped_early``.
        Where training has not lowered the held-out loss by two standard errors, the
        model is its base alone (``uses_network`` is False, ``best_step`` 0), and a base
        that is richer than one Gaussian is fitted once more, to all rows.

    Raises:
        TypeError: for arguments of the wrong kind, discrete samples and iterators among
            them.
        ValueError: for arguments out of range, a ``learning_rate`` beside an
            ``optimizer``, for samples that have no density (values
            that many rows share, columns that are linear functions of others; for a score
            network this is a warning), lie outside their support, or so far out that
            floating point numbers do not resolve their spread, for names that are not
            there, and for a ``checkpoint`` that is damaged or of another fit.
        FloatingPointError: where the loss is not finite before any weights worth
            returning; later than that, the best weights are returned with a warning,
            as after an interruption from the keyboard.
    """
    values, supports = _collect(samples, sites, support)
    rows, specs = unconstrain_rows(values, supports)
    learned, history = fit_rows(
        key,
        rows,
        condition=condition,
        network=network,
        num_steps=num_steps,
        batch_size=batch_size,
        learning_rate=learning_rate,
        validation_fraction=validation_fraction,
        checkpoint=checkpoint,
        progress_bar=progress_bar,
        training=training,
        labels=None if specs is None else labels_of_sites(specs),
    )
    if specs is not None:
        learned = dataclasses.replace(learned, sites=specs)
    return FitResult(learned, history)


def _collect(samples: Any, sites: Any, support: Any) -> tuple[Any, dict]:
    """Arrays by name (or one array) and the supports that are known of them."""
    if isinstance(samples, MCMC):
        values, known = _of_run(samples, sites)
        _check_supports_known(values, known, sites, support)
    elif hasattr(samples, "posterior"):
        values, known = _of_posterior(samples.posterior), {}
    elif isinstance(samples, Mapping):
        values, known = dict(samples), {}
    elif is_frame(samples):
        values, known = columns_of("samples", samples), {}
    else:
        if sites is not None:
            raise ValueError(
                "`sites` must be None for one array, which has no names; got "
                f"{sites!r}."
            )
        check_is_array(samples)
        if support is not None:
            return samples, {None: support}
        _check_array_bounds(samples)
        return samples, {}
    for value in values.values():
        check_is_array(value)
    if not values:
        raise ValueError("`samples` must hold at least one site; got none.")
    if support is not None and not isinstance(support, Mapping):
        raise TypeError(
            "`support` must be a dict of constraints by name for several sites; got "
            f"{support!r}."
        )
    known = {**known, **(support or {})}
    if sites is not None:
        values = _take(values, sites)
        known = {name: value for name, value in known.items() if name in values}
    _check_floating(values)
    _check_bounds(values, known, must_be_given=hasattr(samples, "posterior"))
    return values, known


def _check_floating(values: Mapping[str, Any]) -> None:
    """One integer array among others would become floating point without a word."""
    types = {name: np.asarray(value).dtype for name, value in values.items()}
    # bfloat16 and its kin are no subtype of np.floating, objects no type of JAX
    other = {
        name: str(dtype)
        for name, dtype in types.items()
        if dtype.kind not in "fV" or (dtype.kind == "V" and dtype.names is not None)
    }
    if other:
        raise TypeError(
            f"`samples` must be floating point numbers at every site; got {other}: "
            "discrete values have no density. Leave these out (`sites=`), give them as "
            "`condition=` (of categories one column of 0 and 1 each), or make them "
            "floating with uniform noise as wide as one step (dequantisation)."
        )


def _check_bounds(
    values: Mapping[str, Any], known: Mapping[str, Any], must_be_given: bool
) -> None:
    """Positive draws are not taken for real ones in silence."""
    bounds = seeming_bounds(values, known, is_wary=must_be_given)
    if not bounds:
        return
    evidence = "; ".join(f"{name} is {b.evidence}" for name, b in bounds.items())
    message = (
        "`support` must be given where draws have bounds, else the density has mass "
        f"beyond them; got none for {list(bounds)}: {evidence}. Write "
        f"{suggested(bounds)}, or `constraints.real` to take them as they are."
    )
    if any(
        b.whole and (must_be_given or b.support == "simplex") for b in bounds.values()
    ):
        raise ValueError(message)
    warnings.warn(message, UserWarning, stacklevel=4)


def _check_array_bounds(samples: Any) -> None:
    bound = seeming_bounds({"samples": samples}, {}).get("samples")
    if bound is None:
        return
    remedy = (
        f"Write `support=constraints.{bound.support}` or another interval"
        if bound.whole
        else "Pass a dict of arrays, and `support={name: constraints.positive}`"
    )
    message = (
        "`support` must be given where samples have bounds, else the density has mass "
        f"beyond them; got none, and the array is {bound.evidence}. {remedy}, or "
        "`support=constraints.real` to take them as they are."
    )
    if bound.support == "simplex":
        raise ValueError(message)
    warnings.warn(message, UserWarning, stacklevel=4)


def _of_run(mcmc: MCMC, sites: Any) -> tuple[dict, dict]:
    """Latent sites of a finished run and, from its model, their supports."""
    values = mcmc.get_samples()
    model = getattr(mcmc.sampler, "model", None)
    if not isinstance(values, Mapping) or model is None:
        raise TypeError(
            "`samples` must be a run of a NumPyro model; got one of a density. Pass "
            "`mcmc.get_samples()` instead."
        )
    first, last = (_trace_at(mcmc, model, values, row) for row in (0, -1))
    supports, later = (_supports_of(trace, values) for trace in (first, last))
    fixed = {n: s for n, s in supports.items() if repr(s) == repr(later[n])}
    if sites is None:
        # the vector of `learned_sites` is there already, by the names of its parts
        whole = {n for n, site in first.items() if "learned_vector" in _notes(site)}
        values = {name: values[name] for name in supports if name not in whole}
        fixed = {name: support for name, support in fixed.items() if name in values}
    return dict(values), fixed


def _trace_at(mcmc: MCMC, model: Any, values: Mapping, row: int) -> dict[str, Any]:
    """The model where it stands at one draw."""
    draw = {name: value[row] for name, value in values.items()}
    seeded = handlers.substitute(handlers.seed(model, rng_seed=0), draw)
    # what the run was called with; NumPyro keeps it under these names
    args, kwargs = getattr(mcmc, "_args", ()), getattr(mcmc, "_kwargs", {})
    return handlers.trace(seeded).get_trace(*args, **kwargs)


def _notes(site: dict) -> dict[str, Any]:
    """What ``learned_sites`` wrote on a site."""
    return dict(site.get("rtk", ()))


def _supports_of(trace: dict, values: Mapping) -> dict[str, Any]:
    """Supports of the latent sites, and of those that ``learned_sites`` recorded."""
    supports, known = {}, set()
    for name, site in trace.items():
        notes = _notes(site)
        if site["type"] == "sample" and not site["is_observed"] and name in values:
            supports[name] = site["fn"].support
            known.add(notes.get("learned_vector"))
        elif "part_of" in notes and notes["part_of"] in known and name in values:
            supports[name] = constraint_of(notes["support"])
    return supports


def _check_supports_known(values: dict, known: dict, sites: Any, support: Any) -> None:
    """Without a fixed support of its own a site is not taken as real: a guess."""
    given = support if isinstance(support, Mapping) else {}
    asked = values if sites is None or isinstance(sites, str) else sites
    unknown = [n for n in asked if n in values and n not in known and n not in given]
    if unknown:
        raise ValueError(
            "`support` must be given for deterministic sites, and for those whose bounds "
            f"depend on other sites; got none for {unknown}. Write "
            f"`support={{{unknown[0]!r}: constraints.real}}`, or positive, ..."
        )


def _of_posterior(posterior: Any) -> dict[str, np.ndarray]:
    """Variables of a posterior group, chains and draws merged."""
    return {
        str(name): np.asarray(variable.values).reshape(
            (-1, *np.shape(variable.values)[2:])
        )
        for name, variable in posterior.data_vars.items()
    }


def _take(values: dict, sites: Any) -> dict:
    if isinstance(sites, str) or not isinstance(sites, Sequence) or not sites:
        raise TypeError(f"`sites` must be a sequence of names; got {sites!r}.")
    missing = [name for name in sites if name not in values]
    if missing:
        raise ValueError(
            f"`sites` must be names in `samples`, {sorted(values)}; got {missing}."
        )
    return {name: values[name] for name in sites}
