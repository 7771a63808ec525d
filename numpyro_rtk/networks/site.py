"""What a learned vector stands for: names, shapes and supports, as plain data."""

from typing import Any, NamedTuple

__all__ = ["REAL", "SiteSpec", "nested_tuples"]

REAL = ("real",)
"""Support of a quantity that needs no transform."""


class SiteSpec(NamedTuple):
    """One named quantity inside a learned vector; hashable, and ready for JSON.

    Attributes:
        name: of the site; None for a single array without a name.
        shape: of one constrained value.
        support: name of a NumPyro constraint and its parameters, ``("interval", 0.0,
            2.0)``; see :mod:`numpyro_rtk.sites`.
    """

    name: str | None
    shape: tuple[int, ...]
    support: tuple[Any, ...]

    @classmethod
    def from_json(cls, entry: Any) -> "SiteSpec":
        """From the nested lists that JSON makes of it."""
        name, shape, support = entry
        return cls(name, tuple(int(size) for size in shape), nested_tuples(support))


def nested_tuples(value: Any) -> Any:
    """Nested lists as nested tuples; anything else as it is."""
    return tuple(map(nested_tuples, value)) if isinstance(value, list) else value
