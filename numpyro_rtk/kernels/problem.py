"""What a kernel samples: a density alone, or all latent sites of a NumPyro model.

A problem translates between the user's world (NumPyro's unconstrained sites, or one array
of the density's event shape) and the core's (one flat standardised vector). Only static
facts are kept on it; everything that depends on the model's arguments is made anew by
``bind`` inside each transition, so a second run with new data sees the new data.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from numpyro import handlers
from numpyro.distributions import biject_to
from numpyro.infer.initialization import init_to_sample, init_to_uniform
from numpyro.infer.util import (
    _unconstrain_reparam,
    constrain_fn,
    helpful_support_errors,
    transform_fn,
)

from numpyro_rtk import paths
from numpyro_rtk.core.adapt import Frame
from numpyro_rtk.core.annealed import Path, log_reference
from numpyro_rtk.core.segment import Evaluation
from numpyro_rtk.density import (
    BaseFn,
    Density,
    Part,
    check_density,
    coupled_base,
    has_energy,
    loc_and_scale,
    product_base,
    standardised,
)
from numpyro_rtk.kernels.dependence import depends_on
from numpyro_rtk.kernels.messages import (
    FixedKey,
    depends_on_values,
    has_prior,
    is_plain,
    learned_prior,
    prior_of,
    randomness_message,
    refuse_what_cannot_move,
    subsampled_plates,
    uses_network,
)
from numpyro_rtk.kernels.programs import ById, text_of
from numpyro_rtk.kernels.terms import Terms, counted_from, log_terms, sum_in_two
from numpyro_rtk.prior import LearnedPrior

__all__ = ["Bound", "ModelProblem", "Problem", "ScoreProblem"]

_NUM_PRIOR_DRAWS = 1000


class Bound(NamedTuple):
    """A problem for given model arguments and a given frame.

    Attributes:
        base: the noised prior of the flat position.
        path: level by level target; at level 0 less than the model's log density by the
            sum of ``at_origin``.
        flatten: from the user's values to the flat standardised position.
        unflatten: back.
        log_volume: log determinant of ``unflatten``.
        log_likelihood: everything but the learned priors, at level 0; None without.
        at_origin: the model's terms at the frame's origin.
    """

    base: BaseFn
    path: Path
    flatten: Callable[[Any], jax.Array]
    unflatten: Callable[[jax.Array], Any]
    log_volume: jax.Array
    log_likelihood: Callable[[jax.Array], jax.Array] | None = None
    at_origin: Terms = {}

    @property
    def log_offset(self) -> jax.Array:
        """The sum of ``at_origin``, and what its rounding leaves out, ``(2,)``."""
        return sum_in_two(self.at_origin)

    def energy(self, log_density: jax.Array) -> jax.Array:
        """NumPyro's potential energy, from a log density of the path at level 0."""
        return self.log_volume - (log_density + jnp.sum(self.log_offset))


class Problem:
    """The interface; ``dim`` and ``num_ordinary`` are known after ``setup``."""

    model: Callable | None = None
    dim: int
    num_ordinary: int = 0
    has_prior: np.ndarray = np.zeros(0, bool)
    uses_network: bool = False
    has_energy: bool

    def setup(self, key: jax.Array, args: tuple, kwargs: dict) -> None:
        """Check the user's input and note the static facts."""

    def bind(self, args: tuple, kwargs: dict, frame: Frame) -> Bound:
        """The problem for these arguments."""
        raise NotImplementedError

    def facts(self, args: tuple, kwargs: dict) -> tuple:
        """What a program depends on besides the arguments' shapes; after ``setup``."""
        return ()

    def frame(self) -> Frame:
        """The one that leaves the ordinary sites as they are."""
        nothing = jnp.zeros(self.num_ordinary)
        return Frame(nothing, nothing + 1.0, jnp.zeros(self.dim))

    def moving_terms(self, args: tuple, kwargs: dict) -> frozenset[str]:
        """Sites of the model whose terms depend on some latent value."""
        return frozenset()

    def ordinary_location(
        self, key: jax.Array, args: tuple, kwargs: dict
    ) -> tuple[jax.Array, jax.Array]:
        """A first centre and scale of the ordinary sites, each ``(num_ordinary,)``."""
        nothing = jnp.zeros(0, jnp.result_type(float))
        return nothing, nothing

    def ordinary_values(self, values: Any) -> jax.Array:
        """The ordinary sites of the user's values, flat and not standardised."""
        return jnp.zeros(0, jnp.result_type(float))

    def flat(self, values: Any) -> jax.Array:
        """One draw of the user's values as one vector, not standardised."""
        raise NotImplementedError

    def coordinate_names(self) -> list[str]:
        """Names of its entries, such as ``"x[0]"``."""
        raise NotImplementedError

    def share_further_out(
        self, samples: Any, args: tuple, kwargs: dict
    ) -> float | None:
        """Share of the learned prior's own draws less probable than the median sample."""
        return None

    def check_init_params(self, init_params: Any) -> None:
        """Raise unless ``init_params`` has the structure of one draw."""
        raise NotImplementedError

    def unconstrain(self, args: tuple, kwargs: dict, values: Any) -> Any:
        """From the user's values to unconstrained ones."""
        return values

    def constrain(self, args: tuple, kwargs: dict, *, replay: bool) -> Callable:
        """From unconstrained to the user's values."""
        return lambda values: values


class ScoreProblem(Problem):
    """A density by itself: draws are arrays of its event shape."""

    def __init__(self, density: Density):
        check_density("score", density)
        self.density = density
        self.event_shape = tuple(density.event_shape)
        self.dim = math.prod(self.event_shape)
        self.has_energy = has_energy(density)
        self.uses_network = uses_network(density)

    def flat(self, values: Any) -> jax.Array:
        """The array in one row."""
        return jnp.ravel(values)

    def coordinate_names(self) -> list[str]:
        """``draw[0]`` and so on."""
        return _indexed("draw", self.event_shape)

    def bind(self, args: tuple, kwargs: dict, frame: Frame) -> Bound:
        """The density's own noised family; the arguments play no part."""
        base = standardised(self.density)
        centre, spread = loc_and_scale(self.density)
        return Bound(
            base=base,
            path=paths.prior_path(base),
            flatten=lambda x: jnp.ravel((x - centre) / spread),
            unflatten=lambda u: centre + spread * u.reshape(self.event_shape),
            log_volume=jnp.sum(jnp.log(spread)),
        )

    def check_init_params(self, init_params: Any) -> None:
        """Raise unless it is one array of the event shape."""
        shape = jnp.shape(init_params)
        if shape != self.event_shape:
            raise ValueError(
                f"`init_params` must be an array of shape {self.event_shape} per chain; "
                f"got shape {shape}."
            )


class _Site(NamedTuple):
    name: str
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        return math.prod(self.shape)


class ModelProblem(Problem):
    """All latent sites of a NumPyro model.

    The flat position holds the learned sites first, unconstrained, in the model's order,
    each divided by its own noise process's scale; then the ordinary sites, unconstrained
    and standardised by ``loc`` and ``scale``. Towards the noise end the ordinary sites go
    to a standard normal.

    A site is learned where a :class:`LearnedPrior` stands directly in the model, or in
    NumPyro's ``scan``. Inside another distribution, in a ``cond`` whose branch follows a
    latent site, and where it is observed, it counts as any distribution does: with its
    ``log_prob``.

    Where a learned prior depends on other latent sites (a condition, for one), it is at
    every level what it is at the clean guess of these, and the gradient goes through it.
    """

    def __init__(self, model: Callable, path: str | None, forward_mode: bool = False):
        if not callable(model):
            raise TypeError(
                "`model` must be a NumPyro model (a callable); got "
                f"{type(model).__name__}. A density alone is given as `score=`."
            )
        if path not in (None, "gaussian"):
            raise ValueError(f'`path` must be None or "gaussian"; got {path!r}.')
        self.model = model
        self.path = path
        self.forward_mode = forward_mode
        self.learned: tuple[_Site, ...] = ()
        self.ordinary: tuple[_Site, ...] = ()
        self.transforms: dict | None = None
        self.must_replay = False
        self.has_params = False
        self.demoted: frozenset[str] = frozenset()
        self.is_coupled = False

    def setup(self, key: jax.Array, args: tuple, kwargs: dict) -> None:
        """Trace the model once, refuse what cannot be sampled, note the sites.

        The trace is abstract, as it will be inside the transition: a model that needs
        the values of its sites in Python is caught here.
        """
        self.demoted = frozenset()
        try:
            self._note_sites(key, args, kwargs)
            self._refuse_randomness(args, kwargs)
            self.is_coupled = self._find_coupling(key, args, kwargs)
        except (
            jax.errors.ConcretizationTypeError,
            jax.errors.TracerArrayConversionError,
        ) as error:
            raise TypeError(
                "`model` must be traceable by JAX: it uses a value of a latent site or of "
                "an argument in Python control flow or NumPy code. Use jax.numpy, "
                "jax.lax.cond or jnp.where instead."
            ) from error

    def _note_sites(self, key: jax.Array, args: tuple, kwargs: dict) -> None:
        jax.eval_shape(lambda k: self._note(self._trace(k, args, kwargs)), key)

    def _note(self, trace: dict) -> None:
        latent = {
            name: site
            for name, site in trace.items()
            if site["type"] == "sample" and not site["is_observed"]
        }
        refuse_what_cannot_move(latent)
        learned = {
            n: site
            for n, site in latent.items()
            if learned_prior(site) is not None and n not in self.demoted
        }
        priors = [prior_of(site) for site in learned.values()]
        self.has_energy = all(prior.has_energy for prior in priors)
        self.uses_network = any(uses_network(prior.density) for prior in priors)
        constants = jax.tree.leaves([prior.density for prior in priors])
        self.constants = tuple(ById(leaf) for leaf in constants)
        sites, transforms, dynamic = {}, {}, False
        for name, site in latent.items():
            support = site["fn"].support
            with helpful_support_errors(site):
                transforms[name] = biject_to(support)
            dynamic |= depends_on_values(support)
            shape = transforms[name].inverse_shape(jnp.shape(site["value"]))
            sites[name] = _Site(name, tuple(shape))
        self.learned = tuple(sites[name] for name in learned)
        self.ordinary = tuple(sites[name] for name in latent if name not in learned)
        self.must_replay = dynamic
        self.transforms = None if dynamic else transforms
        self.has_deterministic = any(
            site["type"] == "deterministic" for site in trace.values()
        )
        types = {site["type"] for site in trace.values()}
        self.has_params = not types.isdisjoint({"param", "mutable"})
        self.subsampled = subsampled_plates(trace)
        self.in_control_flow = {n for n in learned if "_control_flow_done" in trace[n]}
        self.num_ordinary = sum(site.size for site in self.ordinary)
        proper = [
            np.full(site.size, has_prior(latent[site.name]["fn"]))
            for site in self.ordinary
        ]
        self.has_prior = np.concatenate([*proper, np.zeros(0, bool)])
        self.dim = self.num_ordinary + sum(site.size for site in self.learned)

    def _refuse_randomness(self, args: tuple, kwargs: dict) -> None:
        """Run the model once as NumPyro's potential does: without a random seed."""
        run = lambda u: len(self._trace_at(args, kwargs, self._split(u)))
        try:
            jax.eval_shape(run, jnp.zeros(self.dim))
        except (
            jax.errors.ConcretizationTypeError,
            jax.errors.TracerArrayConversionError,
        ):
            raise
        except Exception as error:
            # it ran with a seed, so that the seed is what is missing
            raise ValueError(randomness_message(self.subsampled, error)) from error

    def _find_coupling(self, key: jax.Array, args: tuple, kwargs: dict) -> bool:
        """Whether some learned prior depends on other latent sites."""
        if not self.learned:
            return False

        def priors(u):
            trace = self._trace_at(args, kwargs, self._split(u))
            messages = [trace[site.name] for site in self.learned]
            processes = {s.name: _process(trace[s.name], s) for s in self.learned}
            laws = []
            for site, message, part in zip(
                self.learned, messages, self._parts(trace), strict=True
            ):
                block = jnp.zeros((part.copies, part.dim))
                laws.append(part.at(block, jnp.ones(())))
                if not is_plain(message) and self.has_energy:
                    fixed = biject_to(message["fn"].support)(jnp.zeros(site.shape))
                    laws.append((message["scale"], message["fn"].log_prob(fixed)))
            return processes, laws

        processes, laws = depends_on(priors, jnp.zeros(self.dim))
        names = [site.name for site in self.learned]
        moving = {name for name in names if any(processes[name])}
        if moving and moving <= self.in_control_flow:
            # another density for each value, as of `cond`: no noise process in common
            self.demoted |= moving
            self._note_sites(key, args, kwargs)
            return self._find_coupling(key, args, kwargs)
        if moving:
            raise ValueError(
                "`loc` and `scale` of a learned density must not depend on latent sites: "
                f"they are those of the noise process; got sites {names}. Give the "
                "density what it depends on as `rtk.LearnedPrior(model_, condition=...)`."
            )
        is_coupled = any(jax.tree.leaves(laws))
        if is_coupled and not self.has_energy:
            raise ValueError(
                "A condition that depends on latent sites needs an energy, whose "
                f"gradient goes through it; got a score alone among sites {names}. Train "
                "an EnergyModel, or give observed values as `condition`."
            )
        return is_coupled

    def _parts(self, trace: dict, *, with_score: bool = True) -> list[Part]:
        """The learned priors of a trace, in the order of the position."""
        parts = []
        for site in self.learned:
            prior = prior_of(trace[site.name])
            event_size = math.prod(prior.first.density.event_shape)
            copies = site.size // event_size
            if prior.is_stacked:
                batch = jnp.shape(trace[site.name]["value"])
                each = prior.each(batch[: len(batch) - len(prior.event_shape)])
                density = partial(_of_stack, with_score)
                parts.append(Part(density, event_size, copies, (each,)))
                continue
            if prior.condition is None:
                density = standardised(prior.density, with_score=with_score)
                parts.append(Part(density, event_size, copies))
                continue
            density = partial(_at_condition, prior.density, with_score)
            shape = tuple(prior.density.condition_shape)
            batch = jnp.shape(trace[site.name]["value"])
            batch = batch[: len(batch) - len(prior.event_shape)]
            condition = jnp.broadcast_to(prior.condition, (*batch, *shape))
            conditions = (condition.reshape((copies, *shape)),)
            parts.append(Part(density, event_size, copies, conditions))
        return parts

    def bind(self, args: tuple, kwargs: dict, frame: Frame) -> Bound:
        """Collect the learned priors of this call's model and build the path."""
        trace = self._trace(jr.key(0), args, kwargs)
        centres, spreads = [], []
        for site in self.learned:
            centre, spread = _process(trace[site.name], site)
            centres.append(jnp.ravel(centre))
            spreads.append(jnp.ravel(spread))
        centre = jnp.concatenate([*centres, frame.loc])
        spread = jnp.concatenate([*spreads, frame.scale])
        first_ordinary = self.dim - self.num_ordinary

        def unflatten(u):
            return self._split(centre + spread * u)

        def trace_at(u):
            return self._trace_at(args, kwargs, unflatten(u))

        def terms_at(u):
            here = trace_at(u) if self.is_coupled else trace
            return self._terms(args, kwargs, unflatten(u), here), here

        if self.is_coupled:
            parts_at = lambda u: self._parts(trace_at(u), with_score=False)
            base = coupled_base(parts_at, self.num_ordinary, self.forward_mode)
        else:
            base = product_base(self._parts(trace), self.num_ordinary)

        at_origin = terms_at(frame.scaled(frame.origin))[0]

        def log_likelihood(u):
            terms, here = terms_at(u)
            value = counted_from(at_origin, terms) - self._counted_by_base(here, u)
            # the ordinary sites' prior is in the model; the base holds N(0, I) for them
            volume = jnp.sum(jnp.log(frame.scale))
            return value + volume - log_reference(u[first_ordinary:])

        return Bound(
            base=base,
            path=paths.posterior_path(base, log_likelihood, self.forward_mode),
            flatten=lambda values: (self._join(values) - centre) / spread,
            unflatten=unflatten,
            log_volume=jnp.sum(jnp.log(spread)),
            log_likelihood=log_likelihood,
            at_origin=at_origin,
        )

    def facts(self, args: tuple, kwargs: dict) -> tuple:
        """The sites, the model's terms, and the learned priors' arrays.

        A constant outside the model may be another one at the next run.
        """
        given = {id(leaf) for leaf in jax.tree.leaves((args, kwargs))}
        constants = (leaf for leaf in self.constants if id(leaf.value) not in given)
        return (
            self.learned,
            self.ordinary,
            tuple(constants),
            text_of(self._terms_of, args, kwargs),
            self.demoted,
            self.is_coupled,
            self.has_params,
            self.must_replay,
            self.has_prior.tobytes(),
        )

    def moving_terms(self, args: tuple, kwargs: dict) -> frozenset[str]:
        """By what is computed from what."""
        terms = partial(self._terms_of, args, kwargs)
        found = depends_on(terms, jnp.zeros(self.dim))
        return frozenset(name for name, moves in found.items() if moves)

    def _terms_of(self, args: tuple, kwargs: dict, free: jax.Array | None = None):
        """The model's terms at a flat unconstrained position, by default 0."""
        values = self._split(jnp.zeros(self.dim) if free is None else free)
        return self._terms(args, kwargs, values, self._trace_at(args, kwargs, values))

    def flat(self, values: dict) -> jax.Array:
        """Unconstrained sites, learned ones first."""
        return self._join(values)

    def coordinate_names(self) -> list[str]:
        """Site and index; unconstrained values may have fewer than constrained ones."""
        sites = (*self.learned, *self.ordinary)
        return [name for site in sites for name in _indexed(site.name, site.shape)]

    def share_further_out(
        self, samples: dict, args: tuple, kwargs: dict
    ) -> float | None:
        """The smallest over the learned sites; None where no site tells.

        Of a model that was learned from samples, without a condition: an exact density is
        as right in its tails.
        """
        trace = self._trace(jr.key(0), args, kwargs)
        shares = []
        for site in self.learned:
            prior = prior_of(trace[site.name])
            density = prior.density
            if prior.condition is not None or not hasattr(density, "sample_base"):
                continue
            log_density = jax.jit(lambda x, d=density: d.log_density(x, 0.0))
            values = biject_to(trace[site.name]["fn"].support).inv(samples[site.name])
            rows = values.reshape((-1, *density.event_shape))
            chosen = rows[np.linspace(0, len(rows) - 1, _NUM_PRIOR_DRAWS).astype(int)]
            median = jnp.median(log_density(chosen))
            draws = density.sample_base(jr.key(0), (_NUM_PRIOR_DRAWS,))
            shares.append(float(jnp.mean(log_density(draws) < median)))
        return min(shares, default=None)

    def ordinary_location(
        self, key: jax.Array, args: tuple, kwargs: dict
    ) -> tuple[jax.Array, jax.Array]:
        """Median and half the central 68 % of prior draws, given central learned sites."""
        if not self.num_ordinary:
            return super().ordinary_location(key, args, kwargs)

        def draw(key):
            trace = self._trace(key, args, kwargs, draw=True)
            values = {
                site.name: biject_to(trace[site.name]["fn"].support).inv(
                    trace[site.name]["value"]
                )
                for site in self.ordinary
            }
            return self.ordinary_values(values)

        draws = jax.vmap(draw)(jr.split(key, _NUM_PRIOR_DRAWS))
        low, middle, high = jnp.nanquantile(
            jnp.where(jnp.isfinite(draws), draws, jnp.nan),
            jnp.array([0.16, 0.5, 0.84]),
            axis=0,
        )
        spread = 0.5 * (high - low)
        usable = jnp.isfinite(middle) & jnp.isfinite(spread) & (spread > 0)
        return jnp.where(usable, middle, 0.0), jnp.where(usable, spread, 1.0)

    def ordinary_values(self, values: dict) -> jax.Array:
        """The ordinary sites, unconstrained, one after the other."""
        parts = [jnp.ravel(values[site.name]) for site in self.ordinary]
        return jnp.concatenate([*parts, jnp.zeros(0, jnp.result_type(float))])

    def check_init_params(self, init_params: Any) -> None:
        """Raise unless it is a dict with every latent site, of its unconstrained shape."""
        expected = {site.name: site.shape for site in (*self.learned, *self.ordinary)}
        if not isinstance(init_params, dict) or set(init_params) != set(expected):
            got = (
                sorted(init_params)
                if isinstance(init_params, dict)
                else type(init_params).__name__
            )
            raise ValueError(
                "`init_params` must be a dict with one unconstrained value per latent "
                f"site {sorted(expected)}; got {got}."
            )
        for name, shape in expected.items():
            if jnp.shape(init_params[name]) != shape:
                raise ValueError(
                    f"`init_params[{name!r}]` must have shape {shape} per chain "
                    f"(unconstrained); got {jnp.shape(init_params[name])}."
                )

    def unconstrain(self, args: tuple, kwargs: dict, values: dict) -> dict:
        """Constrained values of the latent sites to unconstrained ones."""
        trace = self._trace(jr.key(0), args, kwargs, values)
        return {
            name: biject_to(trace[name]["fn"].support).inv(value)
            for name, value in values.items()
        }

    def constrain(self, args: tuple, kwargs: dict, *, replay: bool) -> Callable:
        """Transforms alone where they suffice; else the model is run again."""
        if not self.must_replay and not (replay and self.has_deterministic):
            return partial(transform_fn, self.transforms)

        def run_again(values):
            model = self._prepared(args, kwargs)
            return constrain_fn(model, args, kwargs, values, return_deterministic=True)

        return run_again

    def _prepared(self, args: tuple, kwargs: dict) -> Callable:
        """The model as NumPyro's samplers prepare it, so that it means the same.

        Parameters (``numpyro.param``, modules) stand at their first values; a key that
        the model asks for (``numpyro.prng_key``) is always the same.
        """
        if not self.has_params:
            return FixedKey(self.model)
        seeded = handlers.seed(self.model, rng_seed=0)
        model = handlers.substitute(seeded, substitute_fn=_anywhere)
        trace = handlers.trace(model).get_trace(*args, **kwargs)
        values = {
            name: site["value"]
            for name, site in trace.items()
            if site["type"] in ("param", "mutable")
        }
        return FixedKey(handlers.substitute(self.model, data=values))

    def _trace(
        self,
        key: jax.Array,
        args: tuple,
        kwargs: dict,
        values: dict | None = None,
        *,
        draw: bool = False,
    ):
        """Run the model once; learned sites at their centre, others anywhere.

        With ``draw`` the ordinary sites are drawn from their prior.
        """
        ordinary = {site.name for site in self.ordinary}

        def choose(site):
            if site["type"] != "sample" or site["is_observed"]:
                return None
            name = site["name"]
            if values is not None and name in values:
                return values[name]
            if draw and name in ordinary:
                return init_to_sample(site)
            prior = learned_prior(site)
            if prior is None or site["value"] is not None:
                return _anywhere(site)
            centre = loc_and_scale(prior.first.density)[0]
            transform = biject_to(site["fn"].support)
            shape = site["kwargs"]["sample_shape"] + site["fn"].shape()
            shape = transform.inverse_shape(shape)
            return transform(jnp.broadcast_to(centre, shape))

        model = handlers.seed(self._prepared(args, kwargs), rng_seed=key)
        model = handlers.substitute(model, substitute_fn=choose)
        return handlers.trace(model).get_trace(*args, **kwargs)

    def _trace_at(self, args: tuple, kwargs: dict, raw: dict) -> dict:
        """Run the model once at these unconstrained values of all latent sites."""
        choose = partial(_unconstrain_reparam, raw)
        model = self._prepared(args, kwargs)
        model = handlers.substitute(model, substitute_fn=choose)
        return handlers.trace(model).get_trace(*args, **kwargs)

    def _split(self, flat: jax.Array) -> dict:
        values, start = {}, 0
        for site in (*self.learned, *self.ordinary):
            values[site.name] = flat[start : start + site.size].reshape(site.shape)
            start += site.size
        return values

    def _join(self, values: dict) -> jax.Array:
        sites = (*self.learned, *self.ordinary)
        return jnp.concatenate([jnp.ravel(values[site.name]) for site in sites])

    def _terms(self, args: tuple, kwargs: dict, values: dict, trace: dict) -> Terms:
        """NumPyro's own, less those that the base counts.

        Plain learned sites are the base's alone, so they are hidden rather than counted
        twice. All others, with a mask or a scale, NumPyro counts its way (the Jacobian of
        a masked site is masked with it), and what the base counts in full is taken off.
        """
        plain = {}
        for site in self.learned:
            if is_plain(trace[site.name]):
                transform = biject_to(trace[site.name]["fn"].support)
                plain[site.name] = transform(values[site.name])
        free = {name: values[name] for name in values if name not in plain}
        model = handlers.substitute(self._prepared(args, kwargs), data=plain)
        rest = handlers.block(model, hide=list(plain))
        return log_terms(rest, args, kwargs, free)

    def _counted_by_base(self, trace: dict, u: jax.Array) -> jax.Array:
        """Log density of the learned sites that NumPyro counts as well."""
        total, start, zero = jnp.zeros((), u.dtype), 0, jnp.zeros((), u.dtype)
        for site, part in zip(self.learned, self._parts(trace), strict=True):
            rows = u[start : start + site.size].reshape(part.copies, part.dim)
            start += site.size
            if is_plain(trace[site.name]):
                continue
            log_volume = jnp.sum(jnp.log(_process(trace[site.name], site)[1]))
            total = total + jnp.sum(part.at(rows, zero).log_density) - log_volume
        return total


def _indexed(name: str, shape: tuple[int, ...]) -> list[str]:
    """``x`` of a scalar, else ``x[0]``, ``x[0,1]``."""
    if not shape:
        return [name]
    return [f"{name}[{','.join(map(str, i))}]" for i in np.ndindex(*shape)]


def _anywhere(site: dict) -> Any:
    """A value in the support: what a handler inside the model gives, else at random."""
    return init_to_uniform(site) if site.get("value") is None else site["value"]


def _process(message: dict, site: _Site) -> tuple[jax.Array, jax.Array]:
    """Centre and scale of the noise process of a learned site, of its shape."""
    prior = prior_of(message)
    if not prior.is_stacked:
        loc, scale = loc_and_scale(prior.density)
        return jnp.broadcast_to(loc, site.shape), jnp.broadcast_to(scale, site.shape)
    batch = jnp.shape(message["value"])
    each = prior.each(batch[: len(batch) - len(prior.event_shape)])
    found = jax.vmap(lambda prior: loc_and_scale(prior.density))(each)
    loc, scale = (leaf.reshape(site.shape) for leaf in found)
    return loc, scale


def _of_stack(with_score: bool, z, t, prior: LearnedPrior) -> Evaluation:
    """One of several priors at one standardised position."""
    if prior.condition is not None:
        return _at_condition(prior.density, with_score, z, t, prior.condition)
    return standardised(prior.density, with_score=with_score)(z, t)


def _at_condition(density: Any, with_score: bool, z, t, condition) -> Evaluation:
    """A density p(x | c) at one standardised position and one condition."""
    given = density.given(condition)
    return standardised(given, process=density, with_score=with_score)(z, t)
