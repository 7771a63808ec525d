"""Several devices give the fit of one; in a process of its own that has four."""

import os
import subprocess
import sys

import jax

SCRIPT = """
import equinox as eqx, jax, jax.random as jr, numpy as np
from jax.sharding import Mesh
from numpyro_rtk.networks import ScoreMLP
from numpyro_rtk.training import descent as descent_module
from numpyro_rtk.training.fit import fit as fit_rows
from numpyro_rtk.training.options import Training

jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
samples = np.random.default_rng(0).normal(size=(200, 2)) ** 3
network = ScoreMLP((2,), width=8, depth=2, key=jr.key(1))
devices = jax.devices()
assert len(devices) == 4
programs = []
run_steps = descent_module.run_steps

def spy(*arguments):
    compiled = run_steps.lower(*arguments).compile()
    programs.append(compiled.compiled.as_text())
    return compiled(*arguments)

def fit(seed, batch_size=12, **options):
    model, history = fit_rows(
        jr.key(seed), samples, network=network, num_steps=40, progress_bar=False,
        batch_size=batch_size, training=Training(num_components=2, **options),
    )
    leaves = jax.tree.leaves(eqx.filter(model, eqx.is_array))
    assert {leaf.sharding.num_devices for leaf in leaves} == {1}
    losses = [history["loss"], history["validation_loss"]]
    return np.concatenate([np.ravel(leaf) for leaf in [*losses, *leaves]])

one, other = fit(0), fit(1)
descent_module.run_steps = spy
four = fit(0, devices=devices)
host = fit(0, devices=Mesh(np.array(devices), ("x",)), on_host=True)
# each device computes on 3 of the 12 points
for program in programs:
    assert "f32[3,8]" in program and "f32[12,8]" not in program
# float32 sums in another order, through 40 steps of Adam; measured 3e-7
assert np.abs(four - one).max() < 2e-5, np.abs(four - one).max()
assert np.abs(host - one).max() < 2e-5, np.abs(host - one).max()
assert np.abs(other[:2] - one[:2]).max() > 1e-2  # the losses
try:
    fit(0, devices=devices, batch_size=510)
except ValueError as error:
    assert "multiple of the number of `devices`, 4; got 510. Take 512" in str(error)
else:
    raise AssertionError("510 is no multiple of 4")
"""


def test_four_devices_give_the_fit_of_one():
    environment = {
        **os.environ,
        "XLA_FLAGS": "--xla_force_host_platform_device_count=4",
        "JAX_PLATFORMS": "cpu",
        "JAX_COMPILATION_CACHE_DIR": jax.config.values["jax_compilation_cache_dir"],
    }
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
