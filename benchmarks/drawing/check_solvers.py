"""The solvers of ``solvers.py`` beside Hugging Face's diffusers, at the same levels.

    pip install torch diffusers            # several GB; best in an environment of its own
    python -m benchmarks.drawing.check_solvers

Both draw from a mixture's exact score, from the same noise: a scheduler is given the
``betas`` whose ``alphas_cumprod`` are the ``a_t**2`` of the ladder, one training time per
level, and the random draws of an ancestral step are ours. What is printed is the largest
difference of a coordinate, in standard deviations of the data. The script fails where it
is not rounding, or where two different solvers cannot be told apart by it.

Not compared, for want of a counterpart: analytic-DPM, the predictor-corrector for this
process, annealed Langevin.
"""

import argparse
import sys
from unittest import mock

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np

from benchmarks.shared import solvers
from benchmarks.shared.tables import Table
from benchmarks.shared.targets import correlated_mixture
from numpyro_rtk.density import standardised
from numpyro_rtk.noise import angle_ladder, noise_variance, signal

try:
    import diffusers
    import torch
    from diffusers.schedulers import scheduling_ddpm
except ImportError:
    diffusers = None

DRAWS = 1000
TOLERANCE = 1e-3  # float32 through some 25 evaluations of a stiff score
# `trailing`: all training times from the last down, for as many steps as times
COMMON = {"prediction_type": "epsilon", "timestep_spacing": "trailing"}
UNCLIPPED = {**COMMON, "clip_sample": False}


def rivals(betas: np.ndarray) -> dict[str, tuple]:
    """Ours and theirs, by name: solver, its options, scheduler."""
    trained = {"trained_betas": betas, "num_train_timesteps": len(betas)}
    ddpm = lambda kind: diffusers.DDPMScheduler(
        variance_type=kind, **trained, **UNCLIPPED
    )
    multistep = diffusers.DPMSolverMultistepScheduler(
        solver_order=2,
        algorithm_type="dpmsolver++",
        solver_type="midpoint",
        euler_at_final=True,
        **trained,
        **COMMON,
    )
    ddim = diffusers.DDIMScheduler(set_alpha_to_one=True, **trained, **UNCLIPPED)
    euler = diffusers.EulerDiscreteScheduler(**trained, **COMMON)
    heun = diffusers.HeunDiscreteScheduler(**trained, **COMMON)
    return {
        "DDPM, small variance": (
            solvers.ddpm,
            {"variance": "small"},
            ddpm("fixed_small"),
        ),
        "DDPM, large variance": (
            solvers.ddpm,
            {"variance": "large"},
            ddpm("fixed_large"),
        ),
        "DDIM": (solvers.ddim, {}, ddim),
        "DDIM, as Euler's steps in x / a": (solvers.ddim, {}, euler),
        "DPM-Solver++ (2M)": (solvers.dpm_solver_2m, {}, multistep),
        "EDM Heun": (solvers.heun, {}, heun),
    }


def by_scheduler(scheduler, score, start, times, noises) -> np.ndarray:
    """Draws of a scheduler; ``noises`` ``(K, n, dim)`` are those of ancestral steps."""
    levels = jnp.asarray(times[1:])
    scores = jax.jit(jax.vmap(score, in_axes=(0, None)))
    scheduler.set_timesteps(len(levels))
    x = torch.tensor(np.asarray(start))
    if isinstance(
        scheduler, diffusers.EulerDiscreteScheduler | diffusers.HeunDiscreteScheduler
    ):
        x = x / float(signal(levels[-1]))  # they step in x / a
    injected = [torch.tensor(np.asarray(noise)) for noise in noises]
    with mock.patch.object(scheduling_ddpm, "randn_tensor", side_effect=injected):
        for timestep in scheduler.timesteps:
            t = levels[int(timestep)]
            position = jnp.asarray(scheduler.scale_model_input(x, timestep).numpy())
            noise = -jnp.sqrt(noise_variance(t)) * scores(position, t)
            x = scheduler.step(torch.tensor(np.asarray(noise)), timestep, x).prev_sample
    return x.numpy()


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.parse_args()
    if diffusers is None:
        parser.error("needs `pip install torch diffusers`; see the first lines")
    target = correlated_mixture(4, 5)
    base = standardised(target.density)
    score = lambda x, t: base(x, t).score
    key_start, key = jr.split(jr.key(0))
    start = jr.normal(key_start, (DRAWS, 4))
    table = Table(
        "check_solvers",
        ("solver", "segments", "largest difference"),
        more=("diffusers", "torch"),
    )
    ok = True
    for num_segments in (5, 13, 25):
        times = angle_ladder(num_segments)
        remaining = np.exp(-2.0 * times)
        betas = 1.0 - remaining[1:] / remaining[:-1]
        noises = jax.vmap(lambda k: jr.normal(k, start.shape))(
            jr.split(key, num_segments)
        )
        drawn = {}
        for name, (solver, options, scheduler) in rivals(betas).items():
            drawn[name] = np.asarray(
                solver(key, score, start, jnp.asarray(times), **options)
            )
            theirs = by_scheduler(scheduler, score, start, times, noises)
            difference = np.abs(drawn[name] - theirs).max()
            ok &= bool(difference < TOLERANCE)
            table.add(name, num_segments, float(difference))
        # the check can see: DDIM and 2M, which agree in the limit, differ here
        control = np.abs(drawn["DDIM"] - drawn["DPM-Solver++ (2M)"]).max()
        ok &= bool(control > 100.0 * TOLERANCE)
        table.add("control: DDIM against 2M", num_segments, float(control))
    print(f"\n{'all agree' if ok else 'NOT the same'} (tolerance {TOLERANCE:g})")
    sys.exit(not ok)


if __name__ == "__main__":
    main()
