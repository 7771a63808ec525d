r"""One safe file for a model: a JSON header and raw arrays, no pickle.

The first line is the header, JSON in ASCII ending in a newline; the arrays follow in
its order, little-endian and C-contiguous, and nothing after them::

    {"format": "numpyro_rtk model", "version": 1, "model": "EnergyModel",
     "noise_range": [0.02, 20.0], "network": "EnergyMLP",
     "hyperparameters": {"event_shape": [2], "width": 64, "depth": 3},
     "checksum": 2774521917,
     "arrays": [{"name": ".network.trunk.inward", "dtype": "<f4", "shape": [2, 64]},
                ...]}

``checksum`` is the CRC-32 of the arrays' bytes. Loading builds the network from its
hyperparameters, by a name looked up in a fixed table (and in what the caller passes),
and fills in the arrays: nothing in a file is ever imported or executed.
"""

import json
import math
import os
from collections.abc import Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np

from numpyro_rtk._checks import check_positive, check_positive_int
from numpyro_rtk._file import read_arrays, write_arrays
from numpyro_rtk.networks.condition import Conditioning
from numpyro_rtk.networks.energy_mlp import EnergyMLP
from numpyro_rtk.networks.energy_set import EnergySet
from numpyro_rtk.networks.energy_unet import EnergyUNet
from numpyro_rtk.networks.mixture_base import MixtureBase
from numpyro_rtk.networks.model import EnergyModel, ScoreModel
from numpyro_rtk.networks.product_base import ProductBase
from numpyro_rtk.networks.score_mlp import ScoreMLP
from numpyro_rtk.networks.score_unet import ScoreUNet
from numpyro_rtk.networks.shapes import as_condition_shape
from numpyro_rtk.networks.site import SiteSpec
from numpyro_rtk.networks.standardise import GaussianBase

__all__ = ["load", "save"]

_FORMAT = "numpyro_rtk model"
# Version 2 adds "sites", version 3 "condition_shape", version 4 "num_components" and
# "reach", version 5 "subspaces", version 6 "uses_network"; models without them are still
# written as version 1.
_VERSIONS = (1, 2, 3, 4, 5, 6)
_MODELS = {"EnergyModel": EnergyModel, "ScoreModel": ScoreModel}
_NETWORKS: dict[str, Any] = {
    network.__name__: network
    for network in (EnergyMLP, EnergySet, EnergyUNet, ScoreMLP, ScoreUNet)
}
_KINDS = {"model": str, "noise_range": list, "network": str, "hyperparameters": dict}


def save(path: str | os.PathLike, model_: EnergyModel | ScoreModel) -> None:
    """Write a model to one file, replacing it only once it is complete.

    Args:
        path: of the file; its folder must exist.
        model_: an :class:`EnergyModel` or a :class:`ScoreModel`. A network class of
            your own is written by its name and ``hyperparameters()``; pass the class to
            :func:`load`.

    Raises:
        TypeError: for anything but a model, for hyperparameters that JSON does not
            hold, and for arrays of types that the format does not know.
        ValueError: for a conditional model that is bound to a condition.
    """
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
    header = {
        "format": _FORMAT,
        "version": _version_of(model_),
        "model": model_class,
        "noise_range": list(model_.noise_range),
        "network": type(model_.network).__name__,
        "hyperparameters": model_.network.hyperparameters(),
    }
    if model_.sites is not None:
        header["sites"] = model_.sites
    if isinstance(model_, EnergyModel) and model_.reach is not None:
        header["reach"] = model_.reach
    if not model_.uses_network:
        header["uses_network"] = False
    if isinstance(model_.base, MixtureBase):
        header["num_components"] = len(model_.base.log_weights)
    if isinstance(model_.base, ProductBase):
        num, _, size = model_.base.subspaces.shape
        header["num_components"] = model_.base.factors.log_weights.shape[1]
        header["subspaces"] = [num, size]
    if model_.condition_shape is not None:
        header["condition_shape"] = list(model_.condition_shape)
    try:
        json.dumps(header)
    except (TypeError, ValueError) as error:
        raise TypeError(
            f"`hyperparameters()` of {type(model_.network).__name__} must return "
            f"values that JSON can hold: {error}."
        ) from None
    write_arrays(path, header, _named_arrays(model_), argument="model_")


def load(
    path: str | os.PathLike, *, networks: Sequence[type] = ()
) -> EnergyModel | ScoreModel:
    """Read a model written by :func:`save`, equal to the last bit.

    Args:
        path: of the file.
        networks: network classes of your own that the file may name.

    Returns:
        The model.

    Raises:
        FileNotFoundError: where there is no such file.
        ValueError: for a file that is not a model, is damaged or incomplete, has
            anything after its end, is of a newer version, or names a network class
            that is neither built in nor among ``networks``.
    """
    header, arrays = read_arrays(
        path, what="model", file_format=_FORMAT, versions=_VERSIONS, kinds=_KINDS
    )
    known = {**_NETWORKS, **{cls.__name__: cls for cls in networks}}
    if header["network"] not in known:
        raise ValueError(
            f"{path} holds a network of class {header['network']!r}, not one of "
            f"{sorted(known)}. Pass the class: `load(path, networks=[...])`."
        )
    if header["model"] not in _MODELS:
        raise ValueError(f"{path} holds an unknown model {header['model']!r}.")
    try:
        template = _template(
            _MODELS[header["model"]],
            known[header["network"]],
            header["hyperparameters"],
            _as_noise_range(header["noise_range"]),
            _as_sites(header.get("sites")),
            as_condition_shape(header.get("condition_shape")),
            _as_num_components(header.get("num_components")),
            _as_subspaces(header.get("subspaces")),
            _as_reach(header.get("reach")),
            bool(header.get("uses_network", True)),
        )
    except (TypeError, ValueError, KeyError) as error:
        raise ValueError(
            f"{path} is damaged: its header describes no model ({error})."
        ) from None
    expected = [(name, tuple(array.shape)) for name, array in _named_arrays(template)]
    found = [(entry["name"], tuple(entry["shape"])) for entry in header["arrays"]]
    if expected != found:
        raise ValueError(
            f"{path} does not fit its own header: its arrays are not those of "
            f"{header['network']}."
        )
    return _fill(template, arrays)


def _version_of(model_: EnergyModel | ScoreModel) -> int:
    if not model_.uses_network:
        return 6
    if isinstance(model_.base, ProductBase):
        return 5
    if (
        isinstance(model_.base, MixtureBase)
        or getattr(model_, "reach", None) is not None
    ):
        return 4
    if model_.condition_shape is not None:
        return 3
    return 1 if model_.sites is None else 2


def _as_noise_range(values: list[Any]) -> tuple[float, float]:
    low, high = (float(value) for value in values)
    if not 0.0 < low < high < math.inf:
        raise ValueError(f"noise range {values}")
    return low, high


def _as_sites(entries: Any) -> tuple[SiteSpec, ...] | None:
    return None if entries is None else tuple(map(SiteSpec.from_json, entries))


def _as_num_components(value: Any) -> int | None:
    if value is not None:
        check_positive_int("num_components", value)
    return value


def _as_subspaces(value: Any) -> tuple[int, int] | None:
    if value is None:
        return None
    num, size = value
    check_positive_int("subspaces", num)
    check_positive_int("subspaces", size)
    return num, size


def _as_reach(value: Any) -> float | None:
    if value is not None:
        check_positive("reach", value)
    return value


def _template(
    model_class: Any,
    network_class: Any,
    hyperparameters: dict[str, Any],
    noise_range: tuple[float, float],
    sites: tuple[SiteSpec, ...] | None,
    condition_shape: tuple[int, ...] | None,
    num_components: int | None,
    subspaces: tuple[int, int] | None,
    reach: float | None,
    uses_network: bool,
) -> Any:
    """A model with shapes in the place of arrays; nothing is computed."""
    for name in ("event_shape", "condition_shape"):
        if isinstance(hyperparameters.get(name), list):
            hyperparameters = {**hyperparameters, name: tuple(hyperparameters[name])}

    def build() -> Any:
        network = network_class(**hyperparameters, key=jr.key(0))
        dim = math.prod(network.event_shape)
        conditioning = None
        if condition_shape is not None:
            weights = jnp.zeros((dim, math.prod(condition_shape)))
            zeros = jnp.zeros(condition_shape)
            conditioning = Conditioning(zeros, zeros, weights)
        return model_class(
            network=network,
            base=_template_base(dim, num_components, subspaces),
            loc=jnp.zeros(network.event_shape),
            scale=jnp.zeros(network.event_shape),
            noise_range=noise_range,
            sites=sites,
            uses_network=uses_network,
            conditioning=conditioning,
            **({} if reach is None else {"reach": reach}),
        )

    return eqx.filter_eval_shape(build)


def _template_base(
    dim: int, num_components: int | None, subspaces: tuple[int, int] | None
) -> GaussianBase | MixtureBase | ProductBase:
    if num_components is None:
        return GaussianBase(jnp.zeros((dim, dim)), jnp.zeros(dim))
    if subspaces is None:
        return _template_mixture((), num_components, dim)
    num, size = subspaces
    factors = _template_mixture((num,), num_components, size)
    return ProductBase(jnp.zeros((num, dim, size)), factors)


def _template_mixture(batch: tuple[int, ...], num: int, dim: int) -> MixtureBase:
    zeros = lambda *shape: jnp.zeros((*batch, *shape))
    return MixtureBase(
        zeros(num), zeros(dim, num * dim), zeros(num, dim), zeros(num, dim)
    )


def _is_array(leaf: Any) -> bool:
    return isinstance(leaf, jax.ShapeDtypeStruct) or eqx.is_array(leaf)


def _named_arrays(model_: Any) -> list[tuple[str, Any]]:
    leaves = jax.tree_util.tree_leaves_with_path(model_)
    return [
        (jax.tree_util.keystr(path), leaf) for path, leaf in leaves if _is_array(leaf)
    ]


def _fill(template: Any, arrays: list[np.ndarray]) -> Any:
    leaves, structure = jax.tree_util.tree_flatten(template)
    remaining = iter(arrays)
    filled = [jnp.asarray(next(remaining)) if _is_array(x) else x for x in leaves]
    return jax.tree_util.tree_unflatten(structure, filled)
