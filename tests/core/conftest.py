"""Tests of the core are strict about shapes."""

import jax
import pytest


@pytest.fixture(autouse=True)
def _no_rank_promotion():
    """A ``(dim,)`` never meets a ``(n, dim)`` by accident."""
    with jax.numpy_rank_promotion("raise"):
        yield
