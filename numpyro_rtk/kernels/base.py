# pyright: reportIncompatibleMethodOverride=false
"""NumPyro's side of a kernel: what its driver, Gibbs and ArviZ ask for."""

import copy
import warnings
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from numpyro.infer.mcmc import MCMCKernel
from numpyro.util import is_prng_key, not_jax_tracer

from numpyro_rtk._checks import COARSE, check_bool, coarse_message
from numpyro_rtk.core.inner import InnerSampler
from numpyro_rtk.kernels.problem import ModelProblem, Problem, ScoreProblem

__all__ = ["GIBBS_SITES", "PathKernel"]

# numpyro.infer.gibbs hands a block the other blocks' values under this keyword, and its
# own initial values constrained.
GIBBS_SITES = "_gibbs_sites"
# Nats of rounding beyond which what comes out has little to do with the model.
_HOPELESS = 10.0
_NUM_LOOKED_AT = 64


class PathKernel(MCMCKernel):
    """A kernel along a path of intermediate targets; subclasses are the samplers.

    They implement ``_check``, ``_init_one`` and ``_sample_one`` (one chain each), the
    fields and the guarantee.
    """

    def __init__(
        self,
        model: Callable | None,
        *,
        score: Any,
        path: str | None,
        build_inner: Callable[[], InnerSampler],
        forward_mode_differentiation: bool = False,
    ):
        check_bool("forward_mode_differentiation", forward_mode_differentiation)
        self._problem = _problem(model, score, path, forward_mode_differentiation)
        self._build_inner = build_inner
        self._inner = build_inner()
        self._num_warmup = 0
        self._sample_fn: Callable | None = None

    @property
    def model(self) -> Callable | None:
        """The NumPyro model; None for unconditional sampling."""
        return self._problem.model

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
        if not isinstance(self._problem, ModelProblem):
            raise TypeError("`wrap_model` needs a kernel that was built from a model.")
        kernel = copy.copy(self)
        old = self._problem
        kernel._problem = ModelProblem(wrapper(self.model), old.path, old.forward_mode)
        kernel._sample_fn = None
        return kernel

    def __getstate__(self) -> dict:
        state = self.__dict__.copy()
        state["_sample_fn"] = state["_inner"] = None  # closures do not pickle
        return state

    def __setstate__(self, state: dict) -> None:
        vars(self).update(state)
        self._inner = self._build_inner()

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
        self._problem.setup(first_key, model_args, kwargs)
        self._check()

        def build(key, params):
            state, has_start = self._build(key, params, model_args, kwargs, is_single)
            return state, has_start, self._is_infinite(state, model_args, kwargs)

        state, has_start, is_infinite = jax.jit(build)(rng_key, init_params)
        if not_jax_tracer(is_infinite) and np.any(np.asarray(is_infinite)):
            raise ValueError(
                "`model` must have a log density below +inf; got +inf at draws of its "
                "prior, which would be a point of infinite mass. Look for a division by "
                "zero, or a scale of 0, in the likelihood."
            )
        if not_jax_tracer(has_start) and not np.all(np.asarray(has_start)):
            raise RuntimeError(
                "Cannot find a start of finite density: the model's log density was NaN "
                f"or -inf at all {self._num_pilot} pilot draws. Check the likelihood "
                "(domain of its parameters, data of the right shape), or give a finite "
                "`init_params`."
            )
        if not_jax_tracer(state.potential_energy):
            _check_resolved(np.asarray(state.potential_energy), init_params is None)
        self._sample_fn = self._sample_one
        return state

    def _is_infinite(self, state: Any, args: tuple, kwargs: dict) -> jax.Array:
        """Whether the likelihood is +inf at some draws around the reference."""
        loc, scale = self._reference(state)
        bound = self._problem.bind(args, kwargs, loc, scale)
        if bound.log_likelihood is None:
            return jax.numpy.array(False)
        draws = jax.random.normal(
            jax.random.key(0), (_NUM_LOOKED_AT, self._problem.dim)
        )
        values = jax.vmap(bound.log_likelihood)(draws)
        return jax.numpy.any(values == jax.numpy.inf)

    def _reference(self, state: Any) -> tuple[jax.Array, jax.Array]:
        """Centre and scale of the ordinary sites, of the first chain."""
        raise NotImplementedError

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

    def _build(self, rng_key, init_params, args, kwargs, is_single: bool):
        """The first state of the chain or chains, and whether it has a density."""
        one = lambda key, params: self._init_one(key, params, args, kwargs)
        build = one if is_single else jax.vmap(one)
        return build(rng_key, init_params)

    def _init_one(self, key, init_params, args, kwargs) -> tuple[Any, jax.Array]:
        """The same of one chain."""
        raise NotImplementedError

    def _sample_one(self, state: Any, args: tuple, kwargs: dict) -> Any:
        raise NotImplementedError

    def _start_from(self, init_params, args: tuple, kwargs: dict, like: Any) -> Any:
        """``init_params`` checked, unconstrained and of the dtypes of ``like``."""
        if GIBBS_SITES in kwargs:
            init_params = self._problem.unconstrain(args, kwargs, init_params)
        self._problem.check_init_params(init_params)
        return jax.tree.map(
            lambda new, old: jax.numpy.asarray(new, old.dtype), init_params, like
        )


def _check_resolved(energy: np.ndarray, may_refuse: bool) -> None:
    """Say, or refuse, where floating point numbers are too coarse for the density."""
    size, epsilon = float(np.max(np.abs(energy))), float(np.finfo(energy.dtype).eps)
    if size * epsilon < COARSE:
        return
    message = coarse_message(size, epsilon)
    if may_refuse and size * epsilon > _HOPELESS:
        raise ValueError(message)
    warnings.warn(message, UserWarning, stacklevel=4)


def _problem(
    model: Callable | None, score: Any, path: str | None, forward_mode: bool
) -> Problem:
    if (model is None) == (score is None):
        got = "neither" if model is None else "both"
        raise ValueError(
            f"Exactly one of `model` and `score` must be given; got {got}. `model` is a "
            "NumPyro model with a LearnedPrior site; `score` is a density to sample by "
            "itself."
        )
    if model is not None:
        return ModelProblem(model, path, forward_mode)
    if path is not None:
        raise ValueError("`path` must be None with `score`: a density is its own path.")
    return ScoreProblem(score)
