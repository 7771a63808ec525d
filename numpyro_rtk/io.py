r"""One safe file for a model: NumPy's npz with a JSON header, no pickle.

The header has these keys, always all of them (see :mod:`numpyro_rtk._file` for what is
around it)::

    {"format": "numpyro_rtk model", "model": "EnergyModel", "network": "EnergyMLP",
     "hyperparameters": {"event_shape": [2], "width": 64, "depth": 3},
     "noise_range": [0.02, 20.0], "reach": 5.0, "uses_network": true, "sites": null,
     "condition_shape": null, "base": ["NoisedMixture", 1], "wrapping": null}

and each array the name of where it stands: ``network.trunk.inward``, ``base.variances``.

Loading builds the network from its hyperparameters, by a name looked up in a fixed table
(and in what the caller passes), fills in the arrays, which must be of its shapes and
types, lets the model check its own numbers, and describes it again: where that is not the
header, the file is refused. Saving does the same first, so that what is saved can be
loaded, and drawn from. What ``wrapping`` says of a network that was trained elsewhere is in
:mod:`numpyro_rtk.wrapped_io`.
"""

import json
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np

from numpyro_rtk._file import Kind, from_arrays, read, refusing, to_arrays, write
from numpyro_rtk.gaussian_product import NoisedProduct
from numpyro_rtk.gaussians import NoisedMixture
from numpyro_rtk.networks.base import AbstractEnergyNetwork, AbstractScoreNetwork
from numpyro_rtk.networks.condition import Conditioning
from numpyro_rtk.networks.energy_mlp import EnergyMLP
from numpyro_rtk.networks.energy_set import EnergySet
from numpyro_rtk.networks.energy_unet import EnergyUNet
from numpyro_rtk.networks.model import EnergyModel, ScoreModel
from numpyro_rtk.networks.score_mlp import ScoreMLP
from numpyro_rtk.networks.score_unet import ScoreUNet
from numpyro_rtk.networks.shapes import as_condition_shape, as_event_shape
from numpyro_rtk.networks.site import SiteSpec
from numpyro_rtk.networks.wrapped import WrappedScore, as_pytree
from numpyro_rtk.sites import check_sites
from numpyro_rtk.wrapped_io import (
    WRAPPED,
    build_wrapped,
    describe_wrapped,
    name_of_network,
)

__all__ = ["load", "save"]

_KIND = Kind(
    name="model",
    argument="path",
    keys=(
        *("model", "network", "hyperparameters", "noise_range", "reach"),
        *("uses_network", "sites", "condition_shape", "base", "wrapping"),
    ),
    remedy="Give the path of a file that `rtk.save` has written, or save it anew.",
)
_MODELS: dict[str, Any] = {"EnergyModel": EnergyModel, "ScoreModel": ScoreModel}
_NETWORK_KINDS = {
    "EnergyModel": AbstractEnergyNetwork,
    "ScoreModel": AbstractScoreNetwork,
}
_NETWORKS: dict[str, Any] = {
    network.__name__: network
    for network in (EnergyMLP, EnergySet, EnergyUNet, ScoreMLP, ScoreUNet)
}


def save(
    path: str | os.PathLike, model_: EnergyModel | ScoreModel | WrappedScore
) -> None:
    """Write a model to one file, replacing it only once it is complete.

    Args:
        path: of the file; its folder must exist. Of a symbolic link, the file that it
            leads to is written.
        model_: an :class:`EnergyModel` or a :class:`ScoreModel`, also one
            :meth:`~ScoreModel.from_network`. A network class of your own is written by its
            name and ``hyperparameters()``; pass the class to :func:`load`. Of any other
            callable the arrays alone are written.

    Raises:
        FileNotFoundError: where the folder does not exist.
        TypeError: for anything but a model, for hyperparameters that JSON does not
            hold, for arrays of types that the format does not know, and for a wrapped
            function that holds no arrays.
        ValueError: for a conditional model that is bound to a condition, and for one
            that cannot be drawn from (NaN, variances or scales that are not positive) or
            that its ``hyperparameters()`` do not describe.
    """
    if isinstance(model_, WrappedScore):
        _save_wrapped(path, model_)
        return
    model_class = type(model_).__name__
    if _MODELS.get(model_class) is not type(model_):
        raise TypeError(
            f"`model_` must be an EnergyModel or a ScoreModel; got {model_class}."
        )
    if model_.bound is not None:
        raise ValueError(
            "`model_` must be the conditional model itself; got one that is bound to a "
            "condition. Save the model that `given` was called on."
        )
    network = type(model_.network)
    if _NETWORKS.get(network.__name__, network) is not network:
        raise TypeError(
            "`model_` must have a network class with a name of its own; got your own "
            f"{network.__name__}, which would be loaded as the built-in. Rename it."
        )
    arrays = to_arrays(model_, "model_")
    header = _described(model_)
    with _refusing_to_save("correct it, or train anew"):
        again = _built(header, arrays, {network.__name__: network})
        if not _same_constants(again, model_):
            raise ValueError(
                f"`hyperparameters()` of {network.__name__} must return every argument "
                "of its constructor except `key`; got another network from them"
            )
    write(path, _KIND, header, arrays)


def _save_wrapped(path: str | os.PathLike, model_: WrappedScore) -> None:
    """The same of a network that was trained elsewhere."""
    arrays, header = to_arrays(model_, "model_"), _described_wrapped(model_)
    network: Any = model_.network
    if header["hyperparameters"] is not None:
        network = type(network)
    with _refusing_to_save("correct it"):
        _built_wrapped(header, arrays, {header["network"]: network})
    write(path, _KIND, header, arrays)


@contextmanager
def _refusing_to_save(remedy: str) -> Iterator[None]:
    """What building it anew raises, as an error of ``model_``."""
    try:
        yield
    except Exception as error:  # of a user's own network, anything
        raise ValueError(
            "`model_` must be one that can be loaded again and drawn from: "
            f"{str(error).rstrip('.')}. Nothing was written; {remedy}."
        ) from error


def load(
    path: str | os.PathLike, *, networks: Sequence[Any] = ()
) -> EnergyModel | ScoreModel | WrappedScore:
    """Read a model written by :func:`save`, equal to the last bit.

    Args:
        path: of the file.
        networks: network classes of your own that the file may name; of a wrapped network
            without ``hyperparameters()`` a callable of the same structure, whose arrays
            are replaced.

    Returns:
        The model.

    Raises:
        FileNotFoundError: where there is no such file.
        TypeError: where ``networks`` are no classes with names of their own.
        ValueError: for a file that is not a model, is damaged or incomplete, has
            anything after its end, describes no model that could be drawn from, or names
            a network class that is neither built in nor among ``networks``.
    """
    known = _known_networks(networks)
    header, arrays = read(path, _KIND)
    name = header["network"]
    if not isinstance(name, str) or name not in known:
        raise ValueError(
            f"{os.fspath(path)} holds a network of class {name!r:.80}, not one of "
            f"{sorted(known)}. Pass the class: `load(path, networks=[...])`."
        )
    with refusing(path, _KIND):
        build = _built_wrapped if header["model"] == WRAPPED else _built
        return build(header, arrays, known)


def _known_networks(networks: Any) -> dict[str, Any]:
    """All networks by name."""
    if not isinstance(networks, list | tuple | set) or not all(map(callable, networks)):
        raise TypeError(
            "`networks` must be a list of network classes, or of wrapped callables; got "
            f"{networks!r:.80}. Write `load(path, networks=[MyNetwork])`."
        )
    given = [cls if isinstance(cls, type) else as_pytree(cls) for cls in networks]
    theirs = [cls for cls in given if cls not in _NETWORKS.values()]
    own = {name_of_network(cls): cls for cls in theirs}
    if len(own) < len(theirs) or own.keys() & _NETWORKS:
        raise TypeError(
            "`networks` must have names of their own, of each other and of the built-in "
            f"{sorted(_NETWORKS)}; got {[name_of_network(cls) for cls in given]}."
        )
    return {**_NETWORKS, **own}


# -- a model and its header --------------------------------------------------------------


def _described(model_: Any) -> dict[str, Any]:
    """The header, as JSON gives it back."""
    network = model_.network
    header = {
        "model": type(model_).__name__,
        "network": type(network).__name__,
        "hyperparameters": network.hyperparameters(),
        "noise_range": list(map(_plain, model_.noise_range)),
        "reach": _plain(model_.reach),
        "uses_network": model_.uses_network,
        "sites": model_.sites,
        "condition_shape": model_.condition_shape,
        "base": [type(model_.base).__name__, *_base_sizes(model_.base)],
        "wrapping": None,
    }
    try:
        return json.loads(json.dumps(header, allow_nan=False))
    except (TypeError, ValueError) as error:
        raise TypeError(
            f"`hyperparameters()` of {type(network).__name__} must return values that "
            f"JSON can hold, as must the model's other attributes: {error}."
        ) from None


def _plain(value: Any) -> Any:
    """A real number as Python's own; anything else stays, for the model's check."""
    is_real = isinstance(value, int | float | np.number) and value is not True
    return float(value) if is_real and value is not False else value


def _built(
    header: dict[str, Any], arrays: Mapping[str, np.ndarray], known: dict[str, Any]
) -> Any:
    """The model of a header and arrays, if they are exactly a model's.

    Raises:
        Exception: of any kind; a constructor may find anything in the header.
    """
    template = eqx.filter_eval_shape(lambda: _template(header, known))
    model_ = from_arrays(template, arrays)
    model_.check()
    if model_.sites is not None:
        check_sites(model_.sites, model_.event_shape)
    _check_described(_described(model_), header)
    return model_


def _described_wrapped(model_: WrappedScore) -> dict[str, Any]:
    """The header, with what it has in common with the others in its place."""
    unused = {"reach": None, "sites": None, "condition_shape": None, "base": None}
    return {**describe_wrapped(model_), **unused, "uses_network": True}


def _built_wrapped(
    header: dict[str, Any], arrays: Mapping[str, np.ndarray], known: dict[str, Any]
) -> WrappedScore:
    """As :func:`_built`."""
    model_ = build_wrapped(header, arrays, known[header["network"]])
    _check_described(_described_wrapped(model_), header)
    return model_


def _check_described(again: dict[str, Any], header: dict[str, Any]) -> None:
    """Raise where the model that was built is not what the header says."""
    differing = [name for name in _KIND.keys if not _is_same(again, header, name)]
    if differing:
        raise ValueError(
            f"its {differing} must be those of the model that they describe; got "
            f"{[header[name] for name in differing]}"
        )


def _is_same(one: dict[str, Any], two: dict[str, Any], name: str) -> bool:
    """As text: to Python, 1 is 1.0 and True."""
    as_text = lambda header: json.dumps(header[name], sort_keys=True)
    return as_text(one) == as_text(two)


def _template(header: dict[str, Any], known: dict[str, Any]) -> Any:
    """The model with whatever arrays; only their shapes and types are wanted."""
    model_name = header["model"]
    if model_name not in _MODELS:
        raise ValueError(f"`model` must be one of {list(_MODELS)}; got {model_name!r}")
    hyperparameters = dict(header["hyperparameters"])
    for name in ("event_shape", "condition_shape"):
        if isinstance(hyperparameters.get(name), list):
            hyperparameters[name] = tuple(hyperparameters[name])
    network = known[header["network"]](**hyperparameters, key=jr.key(0))
    if not isinstance(network, _NETWORK_KINDS[model_name]):
        raise TypeError(
            f"`network` of an {model_name} must be an "
            f"{_NETWORK_KINDS[model_name].__name__}; got {header['network']}"
        )
    event_shape = as_event_shape(network.event_shape)
    dim, sites, reach = math.prod(event_shape), header["sites"], header["reach"]
    zeros = _zeros(*event_shape)
    return _MODELS[model_name](
        network=network,
        base=_base_template(dim, *header["base"]),
        loc=zeros,
        scale=zeros,
        noise_range=tuple(header["noise_range"]),
        sites=None if sites is None else tuple(map(SiteSpec.from_json, sites)),
        uses_network=header["uses_network"],
        conditioning=_conditioning_template(dim, header["condition_shape"]),
        **({} if reach is None else {"reach": reach}),
    )


def _conditioning_template(dim: int, condition_shape: Any) -> Conditioning | None:
    shape = as_condition_shape(condition_shape)
    if shape is None:
        return None
    return Conditioning(_zeros(*shape), _zeros(*shape), _zeros(dim, math.prod(shape)))


def _zeros(*shape: int) -> jax.Array:
    """In the precision of all that ``fit`` learns."""
    return jnp.zeros(shape, jnp.float32)


# -- bases, by the name of their class and some sizes ------------------------------------


def _mixture(dim: int, num: int, batch: tuple[int, ...] = ()) -> NoisedMixture:
    return NoisedMixture(
        log_weights=_zeros(*batch, num),
        axes=_zeros(*batch, dim, num * dim),
        centres=_zeros(*batch, num, dim),
        variances=_zeros(*batch, num, dim),
    )


def _product(dim: int, num_groups: int, size: int, num: int) -> NoisedProduct:
    return NoisedProduct(
        _zeros(num_groups, dim, size), _mixture(size, num, (num_groups,))
    )


_BASES: dict[str, Callable[..., Any]] = {
    "NoisedMixture": _mixture,
    "NoisedProduct": _product,
}


def _base_sizes(base: Any) -> tuple[int, ...]:
    """What the template takes after the dimension."""
    if isinstance(base, NoisedProduct):
        num_groups, _, size = base.subspaces.shape
        return num_groups, size, base.factors.log_weights.shape[1]
    return base.log_weights.shape


def _base_template(dim: int, name: str, *sizes: Any) -> Any:
    if name not in _BASES:
        raise ValueError(f"`base` must be one of {list(_BASES)}; got {name!r:.80}")
    return _BASES[name](dim, *as_event_shape(sizes))


def _same_constants(one: Any, two: Any) -> bool:
    """Whether numbers that are no JAX arrays, which no file holds, are the same."""
    kinds = (bool, int, float, complex, str, np.ndarray, np.generic)
    constants = lambda tree: [x for x in jax.tree.leaves(tree) if isinstance(x, kinds)]
    ours, theirs = constants(one), constants(two)
    return len(ours) == len(theirs) and all(map(np.array_equal, ours, theirs))
