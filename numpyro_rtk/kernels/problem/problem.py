"""What a kernel samples: all latent sites of a NumPyro model, or a density by itself.

A problem translates between the user's world (NumPyro's unconstrained sites) and the
core's (one flat standardised vector). Only static facts are kept on it; everything that
depends on the model's arguments is made anew by ``bind`` inside each transition, so a
second run with new data sees the new data.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from numpyro.distributions import biject_to
from numpyro.infer.util import transform_fn

from numpyro_rtk import paths
from numpyro_rtk.core.annealed import log_reference
from numpyro_rtk.core.segment import Evaluation
from numpyro_rtk.core.warmup.adapt import Frame
from numpyro_rtk.density import (
    BaseFn,
    coupled_base,
    product_base,
)
from numpyro_rtk.kernels.problem.alone import Alone
from numpyro_rtk.kernels.problem.border import OneArray, SitesByName
from numpyro_rtk.kernels.problem.bound import Bound, ByRow
from numpyro_rtk.kernels.problem.coupling import find_coupling
from numpyro_rtk.kernels.problem.dependence import depends_on
from numpyro_rtk.kernels.problem.further_out import share_further_out
from numpyro_rtk.kernels.problem.learned import (
    counted_twice,
    parts_of,
    plain_sites,
    processes_of,
)
from numpyro_rtk.kernels.problem.noted import Noted, note
from numpyro_rtk.kernels.problem.ordinary import prior_location
from numpyro_rtk.kernels.problem.refusals import in_words, refuse_randomness
from numpyro_rtk.kernels.problem.rows import Rows, find_rows, one_row, refuse_others
from numpyro_rtk.kernels.problem.runs import Run, abstractly, prepared
from numpyro_rtk.kernels.problem.terms import Terms, counted_from
from numpyro_rtk.kernels.programs import ById, text_of

__all__ = ["Problem"]


class Problem:
    """All latent sites of a NumPyro model.

    The flat position holds the learned sites first, unconstrained, in the model's order,
    each divided by its own noise process's scale; then the ordinary sites, unconstrained
    and standardised by ``loc`` and ``scale``. Towards the noise end the ordinary sites go
    to a standard normal.

    A site is learned where a :class:`LearnedPrior` stands directly in the model, or in
    NumPyro's ``scan``. Inside another distribution, in a ``cond`` whose branch follows a
    latent site, and where it is observed, it counts as any distribution does: with its
    ``log_prob``.

    Args:
        model: the user's; None with ``density``.
        path: None or ``"gaussian"``.
        forward_mode: differentiate the model forwards.
        density: to sample by itself: the model of one site, whose draws are one array.

    Raises:
        ValueError, TypeError: where these are not what they should be.
    """

    noted: Noted
    is_coupled: bool = False
    rows: Rows

    def __init__(
        self,
        model: Callable | None,
        path: str | None = None,
        forward_mode: bool = False,
        *,
        density: Any = None,
    ):
        self.model = model
        self.path = path
        self.forward_mode = forward_mode
        if model is None:
            self._runnable = Alone(density)
            self.border = OneArray(Alone.site)
            return
        if not callable(model):
            raise TypeError(
                "`model` must be a NumPyro model (a callable); got "
                f"{type(model).__name__}. A density alone is given as `score=`."
            )
        if path not in (None, "gaussian"):
            raise ValueError(f'`path` must be None or "gaussian"; got {path!r}.')
        self._runnable = model
        self.border = SitesByName()

    # -- static facts, known after `setup` but for the first ------------------------

    @property
    def has_likelihood(self) -> bool:
        """Whether there is more to the model than its learned priors."""
        return self.model is not None

    @property
    def is_noted(self) -> bool:
        """Whether :meth:`setup` has looked at the model."""
        return hasattr(self, "noted")

    @property
    def dim(self) -> int:
        """Length of the flat position."""
        return self.noted.flat.dim

    @property
    def num_ordinary(self) -> int:
        """Its trailing coordinates that are of ordinary sites."""
        return self.noted.flat.num_ordinary

    @property
    def has_energy(self) -> bool:
        """Whether every learned prior has a log density, not a score alone."""
        return self.noted.has_energy

    @property
    def uses_network(self) -> bool:
        """Whether some learned prior may be wrong at some noise level."""
        return self.noted.uses_network

    @property
    def has_prior(self) -> np.ndarray:
        """Of each ordinary coordinate, whether its prior can be drawn from."""
        return self.noted.has_prior

    def setup(
        self, key: jax.Array, args: tuple, kwargs: dict, *, by_row: bool = False
    ) -> tuple:
        """Refuse what cannot be sampled, note the static facts; returns :meth:`facts`.

        With ``by_row`` rows that are independent are looked for; else there is one.

        The model is run abstractly, as it will be inside the transition: one that needs
        the values of its sites in Python is caught here.
        """
        demoted = frozenset()
        with in_words():
            while True:
                self.noted = self._note(key, args, kwargs, demoted)
                text = self._text(args, kwargs)
                if isinstance(text, ById):  # some run failed: which?
                    self._refuse_randomness(args, kwargs)
                found = find_coupling(self.noted, self._run(args, kwargs))
                self.is_coupled = found.is_coupled
                if not found.demoted:
                    break
                demoted |= found.demoted
            self.rows = self._find_rows(args, kwargs, by_row)
        return self._facts(args, kwargs, text)

    def check_rows(self, args: tuple, kwargs: dict) -> None:
        """Refuse arguments of other rows: a run that goes on is not set up anew."""
        if self.rows.num > 1:
            refuse_others(self.rows, self._find_rows(args, kwargs, by_row=True))

    def _find_rows(self, args: tuple, kwargs: dict, by_row: bool) -> Rows:
        noted = self.noted
        is_left_to_base = {site.name for site in noted.flat.learned} == {*noted.plain}
        # the law of a score's own chain follows spreads that rows would have in common
        has_one_law = noted.has_energy or noted.is_one_prior
        if not by_row or self.is_coupled or not (is_left_to_base and has_one_law):
            return one_row(noted.flat)
        run = self._run(args, kwargs)
        terms_at = lambda values: run.terms(values, noted.plain)[0]
        return find_rows(noted.flat, noted.plates, terms_at)

    def _note(self, key, args: tuple, kwargs: dict, demoted: frozenset[str]) -> Noted:
        run = prepared(self._runnable, args, kwargs, has_params=False)
        return abstractly(lambda key: note(run.somewhere(key), demoted), key)

    def _refuse_randomness(self, args: tuple, kwargs: dict) -> None:
        """Run the model as NumPyro's potential does: without a random seed."""
        flat = self.noted.flat
        at = lambda position: self._run(args, kwargs).at(flat.split(position))
        run = lambda: abstractly(at, jnp.zeros(flat.dim))
        refuse_randomness(run, self.noted.subsampled)

    def facts(self, args: tuple, kwargs: dict) -> tuple:
        """What a program depends on besides the arguments' shapes; after ``setup``.

        The sites, the model's terms, and the learned priors' arrays: a constant outside
        the model may be another one at the next run.
        """
        return self._facts(args, kwargs, self._text(args, kwargs))

    def _facts(self, args: tuple, kwargs: dict, text: Any) -> tuple:
        noted = self.noted
        given = {id(leaf) for leaf in jax.tree.leaves((args, kwargs))}
        return (
            noted.flat,
            tuple(leaf for leaf in noted.constants if id(leaf.value) not in given),
            text,
            self.is_coupled,
            noted.has_params,
            noted.transforms is None,
            noted.has_prior.tobytes(),
            self.rows,
        )

    def _text(self, args: tuple, kwargs: dict) -> Any:
        return text_of(self._terms_of, args, kwargs)

    def _terms_of(
        self, args: tuple, kwargs: dict, position: jax.Array | None = None
    ) -> Terms:
        """The model's terms at a flat unconstrained position, by default 0."""
        noted = self.noted
        values = noted.flat.split(jnp.zeros(self.dim) if position is None else position)
        return self._run(args, kwargs).terms(values, noted.plain)[0]

    def moving_terms(self, args: tuple, kwargs: dict) -> frozenset[str]:
        """Sites of the model whose terms depend on some latent value."""
        terms = partial(self._terms_of, args, kwargs)
        found = depends_on(terms, jnp.zeros(self.dim))
        return frozenset(name for name, moves in found.items() if moves)

    # -- the problem for given arguments --------------------------------------------

    def _run(self, args: tuple, kwargs: dict) -> Run:
        return prepared(self._runnable, args, kwargs, self.noted.has_params)

    def frame(self) -> Frame:
        """The one that leaves the ordinary sites as they are."""
        nothing = jnp.zeros(self.num_ordinary)
        return Frame(nothing, nothing + 1.0, jnp.zeros(self.dim))

    def bind(self, args: tuple, kwargs: dict, frame: Frame) -> Bound:
        """Collect the learned priors of this call's model and build the path.

        The model is run twice, and once more where priors are coupled: ``jit`` keeps the
        traces of what follows.
        """
        flat, run = self.noted.flat, self._run(args, kwargs)
        trace = run.somewhere(jr.key(0))
        centres, spreads = processes_of(flat, trace)
        centre = jnp.concatenate([*centres, frame.loc])
        spread = jnp.concatenate([*spreads, frame.scale])
        values_at = lambda u: flat.split(centre + spread * u)
        base = _traced_once(self._base(run, trace, values_at))
        base_by_row = _traced_once(self._base_by_row(base, trace))
        bound = Bound(
            base=base,
            path=paths.prior_path(base),
            flatten=lambda values: (
                (flat.join(self.border.inward(values)) - centre) / spread
            ),
            unflatten=lambda u: self.border.outward(values_at(u)),
            log_volume=jnp.sum(jnp.log(spread)),
            log_likelihood=None,
            at_origin={},
            by_row=ByRow(base_by_row, None),
        )
        return self._with_likelihood(bound, run, trace, values_at, frame)

    def _base(self, run: Run, trace: dict, values_at: Callable) -> BaseFn:
        """The noised prior; coupled, its parts are those of another run of the model."""
        flat = self.noted.flat
        if not self.is_coupled:
            return product_base(parts_of(flat, trace), flat.num_ordinary)
        parts_at = lambda u: parts_of(flat, run.at(values_at(u)), with_score=False)
        return coupled_base(parts_at, flat.num_ordinary, self.forward_mode)

    def _base_by_row(self, base: BaseFn, trace: dict):
        """The same with positions by row; coupled priors are of one row."""
        flat, rows = self.noted.flat, self.rows
        if rows.num > 1:
            base = product_base(parts_of(flat, trace), flat.num_ordinary, rows.row_of)

        def by_row(x, t):
            found = base(rows.join(x), t)
            value = jnp.reshape(found.log_density, (rows.num,))
            return Evaluation(value, rows.split(found.score))

        return by_row

    def _with_likelihood(
        self, bound: Bound, run: Run, trace: dict, values_at: Callable, frame: Frame
    ) -> Bound:
        """The path to the posterior, where there is more than learned priors."""
        if not self.has_likelihood:
            return bound
        flat = self.noted.flat
        first_ordinary = flat.dim - flat.num_ordinary
        plain = plain_sites(flat, trace)

        @_traced_once
        def counts(u):
            terms, here = run.terms(values_at(u), plain)
            here = here if self.is_coupled else trace
            return terms, counted_twice(flat, here, u)

        at_origin, _ = counts(frame.scaled(frame.origin))

        @_traced_once
        def log_likelihood(u):
            terms, counted = counts(u)
            value = counted_from(at_origin, terms) - counted
            # the ordinary sites' prior is in the model; the base holds N(0, I) for them
            volume = jnp.sum(jnp.log(frame.scale))
            return value + volume - log_reference(u[first_ordinary:])

        @_traced_once
        def by_row(x):
            u = self.rows.join(x)
            terms, counted = counts(u)
            value = self.rows.counted_from(at_origin, terms) - counted
            scale = jnp.concatenate([jnp.ones(first_ordinary), frame.scale])
            volume = jnp.sum(jnp.log(self.rows.split(scale)), axis=1)
            ordinary = x[:, x.shape[1] - self.rows.num_ordinary :]
            return value + volume - jax.vmap(log_reference)(ordinary)

        path = paths.posterior_path(bound.base, log_likelihood, self.forward_mode)
        return bound._replace(
            path=_traced_once(path),
            log_likelihood=log_likelihood,
            at_origin=at_origin,
            by_row=bound.by_row._replace(log_likelihood=by_row),
        )

    def ordinary_location(
        self, key: jax.Array, args: tuple, kwargs: dict
    ) -> tuple[jax.Array, jax.Array]:
        """A first centre and scale of the ordinary sites, each ``(num_ordinary,)``."""
        if not self.num_ordinary:
            nothing = jnp.zeros(0, jnp.result_type(float))
            return nothing, nothing
        return prior_location(key, self.noted.flat, self._run(args, kwargs))

    # -- the user's values -----------------------------------------------------------

    def ordinary_values(self, values: Any) -> jax.Array:
        """The ordinary sites of the user's values, flat and not standardised."""
        return self.noted.flat.join_ordinary(self.border.inward(values))

    def as_values(self, coordinates: jax.Array) -> Any:
        """One number of each coordinate, ``(dim,)``, in the shape of the user's values."""
        return self.border.outward(self.noted.flat.split(coordinates))

    def flat(self, values: Any) -> jax.Array:
        """One draw of the user's values as one vector, not standardised."""
        return self.noted.flat.join(self.border.inward(values))

    def coordinate_names(self) -> list[str]:
        """Names of its entries, such as ``"x[0]"``."""
        return self.noted.flat.coordinate_names()

    def check_init_params(self, init_params: Any) -> None:
        """Raise unless ``init_params`` has the structure of one draw."""
        self.border.check(self.noted.flat, init_params)

    def share_further_out(
        self, samples: Any, args: tuple, kwargs: dict
    ) -> float | None:
        """Share of the learned prior's own draws less probable than the median sample."""
        if not self.has_likelihood:
            return None
        trace = self._run(args, kwargs).somewhere(jr.key(0))
        return share_further_out(self.noted.flat, trace, samples)

    def unconstrain(self, args: tuple, kwargs: dict, values: dict) -> dict:
        """Constrained values of the latent sites to unconstrained ones."""
        trace = self._run(args, kwargs).somewhere(jr.key(0), values)
        return {
            name: biject_to(trace[name]["fn"].support).inv(value)
            for name, value in values.items()
        }

    def constrain(self, args: tuple, kwargs: dict, *, replay: bool) -> Callable:
        """From unconstrained to the user's values.

        By transforms alone where they suffice; else the model is run again.
        """
        inward, outward = self.border.inward, self.border.outward
        transforms = self.noted.transforms
        if transforms is None or (replay and self.noted.has_deterministic):
            again = lambda values: self._run(args, kwargs).constrain(values)
        else:
            again = partial(transform_fn, transforms)
        return lambda values: outward(again(inward(values)))


def _traced_once(function: Callable) -> Callable:
    """The same function, which JAX asks once for all its uses on arguments of one type."""
    return jax.jit(function, inline=True)
