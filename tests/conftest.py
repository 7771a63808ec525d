"""What every test shares: compiled programs kept on disk, fixed keys, no display."""

import os
import pathlib
import zlib

import jax
import jax.random as jr
import pytest

os.environ.setdefault("MPLBACKEND", "Agg")

_ROOT = pathlib.Path(__file__).resolve().parent.parent
_CACHE = os.environ.get("JAX_COMPILATION_CACHE_DIR") or str(_ROOT / ".jax_cache")
# JAX writes an entry in place: a process must not read what another has half written.
# So each has its own, and so have the processes that its tests start.
_CACHE = os.path.join(_CACHE, os.environ.get("PYTEST_XDIST_WORKER", ""))
os.environ["JAX_COMPILATION_CACHE_DIR"] = _CACHE
jax.config.update("jax_compilation_cache_dir", _CACHE)
# The tests compile hundreds of small programs; by default only slow ones are kept.
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
jax.config.update("jax_persistent_cache_min_entry_size_bytes", 0)


def pytest_configure(config):
    """Short tests compile longer than they run: less optimisation saves two thirds."""
    if config.option.markexpr == "not slow":
        flags = [os.environ.get("XLA_FLAGS", ""), "--xla_backend_optimization_level=0"]
        if jax.__version_info__ < (0, 11):  # later ones end at a flag they do not know
            flags.append("--xla_cpu_use_fusion_emitters=false")
        os.environ["XLA_FLAGS"] = " ".join(flags).strip()


@pytest.fixture(autouse=True, scope="module")
def _forget_programs():
    """Drop what a module compiled: a process may map 65,530 regions, and they add up.

    Beyond that (some 700 tests) XLA dies of a segmentation fault.
    """
    yield
    jax.clear_caches()


@pytest.fixture
def key(request):
    """A key of the test's own: the same every day, whatever the order of the tests."""
    return jr.key(zlib.crc32(request.node.nodeid.encode()))


@pytest.fixture
def x64():
    """Double precision inside one test, for rates of convergence."""
    before = jax.config.jax_enable_x64
    jax.config.update("jax_enable_x64", True)
    yield
    jax.config.update("jax_enable_x64", before)
