"""The user's model, run as NumPyro's samplers run it, so that it means the same."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from numpyro import handlers
from numpyro.distributions import biject_to
from numpyro.infer.initialization import init_to_sample, init_to_uniform
from numpyro.infer.util import _unconstrain_reparam, constrain_fn
from numpyro.primitives import Messenger

from numpyro_rtk.density import loc_and_scale
from numpyro_rtk.kernels.problem.messages import learned_prior
from numpyro_rtk.kernels.problem.terms import Terms, log_terms

__all__ = ["Run", "abstractly", "prepared"]


class Run(NamedTuple):
    """A prepared model and the arguments of one call; each method runs it once."""

    model: Callable
    args: tuple
    kwargs: dict

    def somewhere(
        self,
        key: jax.Array,
        values: dict | None = None,
        drawn: frozenset[str] = frozenset(),
    ) -> dict:
        """The trace with learned sites at their centre, others anywhere.

        Args:
            key: for what is random.
            values: of some sites, constrained, in place of these.
            drawn: sites to draw from their prior instead.
        """

        def choose(site):
            if site["type"] != "sample" or site["is_observed"]:
                return None
            name = site["name"]
            if values is not None and name in values:
                return values[name]
            if name in drawn:
                return init_to_sample(site)
            return _centre_or_anywhere(site)

        model = handlers.seed(self.model, rng_seed=key)
        model = handlers.substitute(model, substitute_fn=choose)
        return handlers.trace(model).get_trace(*self.args, **self.kwargs)

    def at(self, values: dict) -> dict:
        """The trace at these unconstrained values of all latent sites."""
        choose = partial(_unconstrain_reparam, values)
        model = handlers.substitute(self.model, substitute_fn=choose)
        return handlers.trace(model).get_trace(*self.args, **self.kwargs)

    def terms(self, values: dict, hidden: frozenset[str]) -> tuple[Terms, dict]:
        """The log density's terms there but those of the hidden sites, and the trace."""
        return log_terms(self.model, self.args, self.kwargs, values, hidden)

    def constrain(self, values: dict) -> dict:
        """The sites' values, constrained, and those of deterministic sites."""
        return constrain_fn(
            self.model, self.args, self.kwargs, values, return_deterministic=True
        )


def prepared(model: Callable, args: tuple, kwargs: dict, has_params: bool) -> Run:
    """The model as NumPyro's samplers prepare it.

    Parameters (``numpyro.param``, modules) stand at their first values, which takes one
    run more; a key that the model asks for (``numpyro.prng_key``) is always the same.
    """
    if not has_params:
        return Run(_FixedKey(model), args, kwargs)
    seeded = handlers.seed(model, rng_seed=0)
    first = handlers.substitute(seeded, substitute_fn=_anywhere)
    trace = handlers.trace(first).get_trace(*args, **kwargs)
    values = {
        name: site["value"]
        for name, site in trace.items()
        if site["type"] in ("param", "mutable")
    }
    return Run(_FixedKey(handlers.substitute(model, data=values)), args, kwargs)


def abstractly(function: Callable[..., Any], *inputs: Any) -> Any:
    """What ``function`` returns of tracers in the inputs' place; nothing is computed."""
    found = []
    jax.eval_shape(lambda *tracers: found.append(function(*tracers)), *inputs)
    return found[0]


class _FixedKey(Messenger):
    """Gives the same key wherever a model asks for one, as NumPyro's samplers do."""

    def process_message(self, msg: Any) -> None:
        """Before a seed further out would."""
        if msg["type"] == "prng_key" and msg["value"] is None:
            msg["value"] = jax.random.key(0)


def _anywhere(site: dict) -> Any:
    """A value in the support: what a handler inside the model gives, else at random."""
    return init_to_uniform(site) if site.get("value") is None else site["value"]


def _centre_or_anywhere(site: dict) -> Any:
    """The centre of a learned site's noise process; of another site any value."""
    prior = learned_prior(site)
    if prior is None or site["value"] is not None:
        return _anywhere(site)
    centre = loc_and_scale(prior.first.density)[0]
    transform = biject_to(site["fn"].support)
    shape = site["kwargs"]["sample_shape"] + site["fn"].shape()
    shape = transform.inverse_shape(shape)
    return transform(jnp.broadcast_to(centre, shape))
