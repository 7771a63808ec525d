"""What a model must not do, in words."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import jax
import numpyro.distributions as dist

__all__ = ["in_words", "refuse_randomness", "refuse_what_cannot_move"]


_NEEDS_VALUES = (
    jax.errors.ConcretizationTypeError,
    jax.errors.TracerArrayConversionError,
)


@contextmanager
def in_words() -> Iterator[None]:
    """Say what is wrong where a model needs values that it is not given."""
    try:
        yield
    except _NEEDS_VALUES as error:
        raise TypeError(
            "`model` must be traceable by JAX: it uses a value of a latent site or of "
            "an argument in Python control flow or NumPy code. Use jax.numpy, "
            "jax.lax.cond or jnp.where instead."
        ) from error


def refuse_what_cannot_move(latent: dict) -> None:
    """Raise for latent sites that are discrete or fixed, and for a model of none."""
    for name, site in latent.items():
        if isinstance(site["fn"], dist.Delta):
            raise ValueError(  # noqa: TRY004  what is wrong is the model, not a type
                f"Site {name!r} has a Delta distribution; use `numpyro.deterministic`."
            )
        if site["fn"].support.is_discrete:
            raise ValueError(
                f"Latent site {name!r} is discrete, and these kernels move continuous "
                "sites only. Sum it out (for example `dist.MixtureSameFamily`), or give "
                "it a block of its own: `numpyro.infer.Gibbs([(RTKMALA(model), [...]), "
                "(DiscreteGibbs(model), discrete_latent_sites)])`."
            )
    if not latent:
        raise ValueError("`model` must have at least one latent site; got none.")


def refuse_randomness(run: Callable[[], object], subsampled: list[str]) -> None:
    """Raise for a model that runs with a random seed alone; ``run`` it without one."""
    try:
        run()
    except _NEEDS_VALUES:
        raise
    except Exception as error:
        # it ran with a seed, so that the seed is what is missing
        raise ValueError(_randomness_message(subsampled, error)) from error


def _randomness_message(subsampled: list[str], error: Exception) -> str:
    start = "`model` must draw nothing at random but its latent sites; got "
    if subsampled:
        return (
            f"{start}the plates {subsampled} with `subsample_size`: a batch drawn once "
            "and scaled up gives another posterior, one drawn anew each time none. Use "
            "all rows (no `subsample_size`), or choose the batch yourself and approve "
            "of that: `handlers.substitute(model, data={"
            f"{subsampled[0]!r}: indices}})`. `numpyro.infer.HMCECS` is made for batches."
        )
    return (
        f"{start}an error where the model runs without a random seed, as it does in NUTS: "
        f"{type(error).__name__}: {error}. Is a site hidden (`handlers.block`), or drawn "
        "inside a likelihood? Draw before, and pass what was drawn as an argument."
    )
