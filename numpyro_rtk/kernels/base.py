# pyright: reportIncompatibleMethodOverride=false
"""NumPyro's side of a kernel: what its driver, Gibbs and ArviZ ask for."""

import copy
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from numpyro.infer.mcmc import MCMCKernel
from numpyro.util import is_prng_key, not_jax_tracer

from numpyro_rtk._checks import COARSE, check_bool, coarse_message
from numpyro_rtk.core.warmup.adapt import Frame
from numpyro_rtk.kernels.problem.problem import Problem
from numpyro_rtk.kernels.problem.terms import rounding_of, sum_of_squares
from numpyro_rtk.kernels.programs import ById, compiled, make_room

__all__ = ["GIBBS_SITES", "PathKernel"]

# numpyro.infer.gibbs hands a block the other blocks' values under this keyword, and its
# own initial values constrained.
GIBBS_SITES = "_gibbs_sites"
# Nats of rounding beyond which what comes out has little to do with the model.
_HOPELESS = 10.0
_NUM_LOOKED_AT = 64
# Starts, each counting log densities from where the one before has led.
_MOST_ORIGINS = 3


class _Look(NamedTuple):
    """What a first state must be asked.

    Attributes:
        is_infinite: whether the likelihood is +inf at some draws around the frame.
        away: nats that rounding adds to a log density of the size that it has.
        position: of the chain of highest density, a frame's origin.
        squares: of the model's terms at the origin, summed by site.
    """

    is_infinite: jax.Array
    away: jax.Array
    position: jax.Array
    squares: dict[str, jax.Array]


class PathKernel(MCMCKernel):
    """A kernel along a path of intermediate targets; subclasses are the samplers.

    They implement ``_check``, ``_build`` and ``_sample_one`` (one chain), the fields and
    the guarantee.
    """

    # Whether independent rows of a plate are decided about each by itself.
    _decides_by_row = False

    def __init__(
        self,
        model: Callable | None,
        *,
        score: Any,
        path: str | None,
        forward_mode_differentiation: bool = False,
    ):
        check_bool("forward_mode_differentiation", forward_mode_differentiation)
        self._problem = _problem_of(model, score, path, forward_mode_differentiation)
        self._num_warmup = 0
        self._sample_fn: Callable | None = None

    @property
    def model(self) -> Callable | None:
        """The NumPyro model; None for unconditional sampling."""
        return self._problem.model

    @property
    def has_likelihood(self) -> bool:
        """Whether there is more to sample than a learned prior by itself."""
        return self._problem.has_likelihood

    @property
    def has_energy(self) -> bool:
        """Whether every learned prior has a log density; known once a model has run."""
        return self._problem.has_energy

    @property
    def sample_field(self) -> str:
        """Name of the state's field that holds the draw."""
        return "z"

    def postprocess_fn(self, args: tuple, kwargs: dict | None) -> Callable:
        """Constrain sites and replay the deterministic ones."""
        return self._problem.constrain(args, kwargs or {}, replay=True)

    def get_constrain_fn(
        self, model_args: tuple, model_kwargs: dict | None
    ) -> Callable:
        """As :meth:`postprocess_fn` without deterministic sites (NumPyro's Gibbs)."""
        return self._problem.constrain(model_args, model_kwargs or {}, replay=False)

    def refresh(self, state: Any, model_args: tuple, model_kwargs: Any) -> Any:
        """Return the state: nothing that depends on the data is cached."""
        return state

    def wrap_model(self, wrapper: Callable) -> "PathKernel":
        """A copy bound to ``wrapper(model)`` (NumPyro's Gibbs)."""
        if self.model is None:
            raise TypeError("`wrap_model` needs a kernel that was built from a model.")
        kernel = copy.copy(self)
        old = self._problem
        kernel._problem = Problem(wrapper(self.model), old.path, old.forward_mode)
        kernel._sample_fn = None
        return kernel

    def __getstate__(self) -> dict:
        state = self.__dict__.copy()
        state["_sample_fn"] = None  # closures do not pickle
        return state

    def init(
        self,
        rng_key: jax.Array,
        num_warmup: int,
        init_params: Any = None,
        model_args: tuple = (),
        model_kwargs: dict | None = None,
    ) -> Any:
        """Trace the model, calibrate the path, start the chain (or chains)."""
        kwargs = {} if model_kwargs is None else model_kwargs
        is_single = is_prng_key(rng_key)
        first_key = rng_key if is_single else rng_key[0]
        self._num_warmup = num_warmup
        if not_jax_tracer(rng_key):
            make_room()
        problem_facts = self._problem.setup(
            first_key, model_args, kwargs, by_row=self._decides_by_row
        )
        self._check()

        def start(key, params, origin, args, kwargs):
            state, has_start = self._build(key, params, args, kwargs, is_single, origin)
            return state, has_start, self._look(state, args, kwargs)

        facts = ("start", ById(self), num_warmup, is_single, *problem_facts)
        build = compiled(facts, start, model_args, kwargs)
        origin = jnp.zeros(self._problem.dim)
        for attempt in range(_MOST_ORIGINS):
            state, has_start, found = build(rng_key, init_params, origin)
            if not not_jax_tracer(has_start):
                break
            self._refuse_start(bool(np.all(has_start)), found)
            rounding = self._rounding_of(found, model_args, kwargs)
            # another origin helps a model's terms, not the size of the learned prior
            helps = found.squares and not (attempt and found.away < COARSE)
            if rounding < COARSE or not helps:
                break
            origin = found.position
        if not_jax_tracer(has_start):
            _check_resolved(rounding, init_params is None)
        self._sample_fn = self._sample_one
        return state

    def _refuse_start(self, has_start: bool, found: _Look) -> None:
        if np.any(np.asarray(found.is_infinite)):
            raise ValueError(
                "`model` must have a log density below +inf; got +inf at draws of its "
                "prior, which would be a point of infinite mass. Look for a division by "
                "zero, or a scale of 0, in the likelihood."
            )
        if not has_start:
            raise RuntimeError(
                "Cannot find a start of finite density: the model's log density was NaN "
                f"or -inf at all {self._num_pilot} pilot draws. Check the likelihood "
                "(domain of its parameters, data of the right shape), or give a finite "
                "`init_params`."
            )

    def rounding(self, state: Any, model_args: tuple, model_kwargs: dict) -> float:
        """Nats to which the model's log density is resolved at the chains' positions."""
        facts = ("look", ById(self), *self._problem.facts(model_args, model_kwargs))
        look = compiled(facts, self._look, model_args, model_kwargs)
        return self._rounding_of(look(state), model_args, model_kwargs)

    def _rounding_of(self, found: _Look, args: tuple, kwargs: dict) -> float:
        away = float(found.away)
        rounding = away + rounding_of(found.squares)
        if rounding < COARSE:
            return rounding
        return away + rounding_of(
            found.squares, self._problem.moving_terms(args, kwargs)
        )

    def _look(self, state: Any, args: tuple, kwargs: dict) -> _Look:
        frame = self._frame(state)
        bound = self._problem.bind(args, kwargs, frame)
        z = state.z
        if jnp.ndim(state.i) == 0:
            z = jax.tree.map(lambda leaf: leaf[None], z)
        places = jax.vmap(bound.flatten)(z)
        # some at a time: a likelihood of many rows at all of them would be large
        at = lambda function, u: jax.lax.map(function, u, batch_size=32)
        is_infinite = jnp.array(False)
        if bound.log_likelihood is not None:
            around = jr.normal(jr.key(0), (_NUM_LOOKED_AT, self._problem.dim))
            is_infinite = jnp.any(at(bound.log_likelihood, around) == jnp.inf)
        here = at(lambda u: bound.at_ground(u).log_density, places)
        here = jnp.where(jnp.isfinite(here), here, -jnp.inf)
        size = jnp.max(jnp.abs(here), initial=0.0, where=here > -jnp.inf)
        return _Look(
            is_infinite=is_infinite,
            away=jnp.finfo(size.dtype).eps * size,
            position=frame.unscaled(places[jnp.argmax(here)]),
            squares=sum_of_squares(bound.at_origin),
        )

    def _frame(self, state: Any) -> Frame:
        """The frame of the state, of the first chain where each has its own."""
        one = lambda leaf: leaf if leaf.ndim == 1 else leaf[0]
        return jax.tree.map(one, state.adapt_state.frame)

    def _running(self, state: Any, name: str, new: jax.Array) -> jax.Array:
        """The running mean within warm-up, or after it, of a field, with this draw's."""
        mean = getattr(state, name)
        num = state.i + 1
        num = jnp.where(num > self._num_warmup, num - self._num_warmup, num)
        return mean + (new - mean) / num

    def sample(self, state: Any, model_args: tuple, model_kwargs: dict | None) -> Any:
        """One draw (with vectorised chains: one per chain)."""
        kwargs = {} if model_kwargs is None else model_kwargs
        step = lambda s: self._sample_one(s, model_args, kwargs)
        return step(state) if is_prng_key(state.rng_key) else jax.vmap(step)(state)

    @property
    def _num_pilot(self) -> int:
        """Draws that a start is looked for among."""
        raise NotImplementedError

    def _check(self) -> None:
        """Raise when the problem, now traced, is not for this kernel."""

    def _build(self, rng_key, init_params, args, kwargs, is_single: bool, origin):
        """The first state of the chain or chains, and whether it has a density.

        ``origin``: see :class:`Frame`.
        """
        raise NotImplementedError

    def _sample_one(self, state: Any, args: tuple, kwargs: dict) -> Any:
        raise NotImplementedError

    def _start_from(self, init_params, args: tuple, kwargs: dict, like: Any) -> Any:
        """``init_params`` checked, unconstrained and of the dtypes of ``like``."""
        if GIBBS_SITES in kwargs:
            init_params = self._problem.unconstrain(args, kwargs, init_params)
        self._problem.check_init_params(init_params)
        return jax.tree.map(
            lambda new, old: jnp.asarray(new, old.dtype), init_params, like
        )


def _check_resolved(rounding: float, may_refuse: bool) -> None:
    """Say, or refuse, where floating point numbers are too coarse for the density."""
    if rounding < COARSE:
        return
    message = coarse_message(rounding)
    if may_refuse and rounding > _HOPELESS:
        raise ValueError(message)
    warnings.warn(message, UserWarning, stacklevel=4)


def _problem_of(
    model: Callable | None, score: Any, path: str | None, forward_mode: bool
) -> Problem:
    """The problem of a kernel's arguments of these names.

    Raises:
        ValueError: unless exactly one of ``model`` and ``score`` is given, or for a
            ``path`` with ``score``.
    """
    if (model is None) == (score is None):
        got = "neither" if model is None else "both"
        raise ValueError(
            f"Exactly one of `model` and `score` must be given; got {got}. `model` is a "
            "NumPyro model with a LearnedPrior site; `score` is a density to sample by "
            "itself."
        )
    if score is not None and path is not None:
        raise ValueError("`path` must be None with `score`: a density is its own path.")
    return Problem(model, path, forward_mode, density=score)
