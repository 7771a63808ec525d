"""A second run on new data of the same shapes compiles no start."""

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest

import numpyro_rtk as rtk
from numpyro_rtk.kernels import programs
from numpyro_rtk.kernels.programs import ById, compiled
from tests.kernels.models import Moving

PRIOR = rtk.GaussianMixture([0.3, 0.7], [[-1.0], [1.0]], [[[0.04]], [[0.09]]])
KERNELS = {
    "exchange": lambda model: rtk.RTKReplicaExchange(
        model, num_levels=3, num_particles=32
    ),
    "mala": lambda model: rtk.RTKMALA(model, num_segments=3),
}


def counted(prior=PRIOR):
    """A model, and a list with an entry for each time that it is run."""
    runs = []

    def model(y, prior=prior, sd=0.5):
        runs.append(None)
        x = numpyro.sample("x", rtk.LearnedPrior(prior))
        numpyro.sample("y", dist.Normal(x[0], sd), obs=y)

    return model, runs


def starts(kernel, runs, *calls):
    """Start on each of the arguments; how often the model was run for each."""
    counts = []
    for args, kwargs in calls:
        before = len(runs)
        state = kernel.init(jr.key(0), 20, None, args, kwargs)
        assert np.isfinite(state.potential_energy)
        counts.append(len(runs) - before)
    return counts


@pytest.mark.parametrize("build", KERNELS.values(), ids=KERNELS)
def test_new_data_of_the_same_shape_is_only_looked_at(build):
    """Beyond the checks of the model, which trace it, nothing runs it again."""
    model, runs = counted()
    kernel = build(model)
    data = (np.float32([0.1, 0.2]), jnp.array([3.0, 4.0]), jnp.zeros(3))
    first, second, other = starts(kernel, runs, *[((y,), {}) for y in data])
    checks = starts(kernel, runs, ((data[0],), {}))[0]
    assert second == checks
    assert first > second
    assert other == first


def coupled(y):
    c = numpyro.sample("c", dist.Normal(0.3, 0.8))
    condition = jnp.where(c > 0.0, 1.0, -1.0)
    x = numpyro.sample("x", rtk.LearnedPrior(Moving(), condition=condition))
    numpyro.sample("y", dist.Normal(x[0], 0.5), obs=y)


def ordinary(y):
    c = numpyro.sample("c", dist.Normal(0.3, 0.8))
    numpyro.sample("y", dist.Normal(c, 0.5), obs=y)


# of a start: to note the sites, to compare the program, and where a learned prior comes
# after another site, to see what it depends on; at the prior of ordinary sites; and as
# often as a draw wherever the path is built (exchange: three times, else twice)
RUNS = {
    ("exchange", "learned"): (8, 2),
    ("mala", "learned"): (6, 2),
    ("exchange", "coupled"): (13, 3),
    ("mala", "ordinary"): (7, 2),
}


@pytest.mark.parametrize("case", RUNS, ids="-".join)
def test_how_often_the_model_is_run(case):
    """Traced that is: a large model waits for that before every compilation."""
    runs = []
    plain, _ = counted()
    model = {"learned": plain, "coupled": coupled, "ordinary": ordinary}[case[1]]

    def noticed(y):
        runs.append(None)
        model(y)

    kernel, data = KERNELS[case[0]](noticed), jnp.zeros(2)
    start = lambda key, y: kernel.init(key, 20, None, (y,), {})
    state = jax.eval_shape(start, jr.key(0), data)
    at_start = len(runs)
    jax.eval_shape(lambda state, y: kernel.sample(state, (y,), {}), state, data)
    assert (at_start, len(runs) - at_start) == RUNS[case]


def test_new_data_gives_a_new_start():
    """Of a kept program, the same as of a new one."""
    old, new = jnp.array([-1.0, -1.2]), jnp.array([0.9, 1.2])
    model, _ = counted()
    kernel = KERNELS["exchange"](model)
    kernel.init(jr.key(0), 20, None, (old,), {})
    kept = kernel.init(jr.key(0), 20, None, (new,), {})
    fresh = KERNELS["exchange"](model).init(jr.key(0), 20, None, (new,), {})
    assert kept.z["x"] == fresh.z["x"]
    assert kept.log_evidence == fresh.log_evidence


def test_what_is_no_array_or_another_prior_is_another_program():
    model, runs = counted()
    kernel = KERNELS["mala"](model)
    y, moved = jnp.zeros(2), rtk.GaussianMixture([1.0], [[0.5]], [[[0.1]]])
    calls = [((y,), {"sd": sd}) for sd in (0.5, 0.5, 0.6)]
    counts = starts(kernel, runs, *calls, ((y, moved), {}), ((y, moved), {}))
    assert counts[0] == counts[2] > counts[1]
    assert counts[3] > counts[1]
    assert counts[4] == counts[1]


def test_a_prior_that_is_exchanged_outside_the_model_is_noticed():
    holder = [PRIOR]

    def model(y):
        x = numpyro.sample("x", rtk.LearnedPrior(holder[0]))
        numpyro.sample("y", dist.Normal(x[0], 5.0), obs=y)

    kernel = KERNELS["mala"](model)
    kernel.init(jr.key(0), 20, None, (jnp.zeros(()),), {})
    holder[0] = rtk.GaussianMixture([1.0], [[40.0]], [[[0.1]]])
    state = kernel.init(jr.key(0), 20, None, (jnp.zeros(()),), {})
    assert state.z["x"][0] > 20.0


def test_a_constant_that_is_changed_outside_the_model_is_noticed():
    """A number, an array, and the prior within a wrapper: as a notebook's next cell."""
    inner = rtk.GaussianMixture([1.0], [[0.5]], [[[0.1]]])
    holder = {"sd": 0.05, "shift": jnp.zeros(1), "inner": inner}

    def model(y):
        x = numpyro.sample("x", rtk.LearnedPrior(PRIOR))
        prior = rtk.LearnedPrior(holder["inner"])
        moved = dist.TransformedDistribution(
            prior, dist.transforms.AffineTransform(0.0, 1.0)
        )
        numpyro.sample("z", moved.to_event(0))
        centre = x[0] + holder["shift"][0]
        numpyro.sample("y", dist.Normal(centre, holder["sd"]), obs=y)

    kernel, args = KERNELS["mala"](model), (jnp.array(0.1),)
    start = lambda: kernel.init(jr.key(0), 20, None, args, {}).potential_energy
    moved = rtk.GaussianMixture([1.0], [[4.0]], [[[0.1]]])
    changes = {"sd": 50.0, "shift": jnp.ones(1), "inner": moved}
    seen = [start()]
    for name, value in changes.items():
        holder[name] = value
        kept = start()
        fresh = KERNELS["mala"](model).init(jr.key(0), 20, None, args, {})
        assert kept == fresh.potential_energy
        assert kept != seen[-1]
        seen.append(kept)


def test_a_model_that_needs_values_in_python_still_starts():
    def model(y, n, use):
        x = numpyro.sample("x", rtk.LearnedPrior(PRIOR))
        for i in range(n):
            numpyro.sample(f"y{i}", dist.Normal(x[0], 0.5), obs=y[i])
        numpyro.sample("rest", dist.Normal(x[0], 0.5), obs=y[use])

    kernel = KERNELS["mala"](model)
    for n in (1, 2):
        args = (jnp.array([0.1, 0.2]), np.array(n, np.int32), np.array([True, False]))
        state = kernel.init(jr.key(0), 20, None, args, {})
        assert np.isfinite(state.potential_energy)


def test_what_the_model_does_in_numpy_keeps_its_digits():
    """Double precision of NumPy's is part of the program, and changed data are seen."""

    def model(y):
        x = numpyro.sample("x", rtk.LearnedPrior(PRIOR))
        numpyro.sample("y", dist.Normal(x[0], 0.05), obs=jnp.asarray(y - 1e9))

    kernel, y = KERNELS["mala"](model), np.array([1e9 + 1.1])
    for shift in (0.0, -2.0):
        y += shift
        state = kernel.init(jr.key(0), 20, None, (y,), {})
        assert abs(state.z["x"][0] - (1.1 + shift)) < 0.3


def test_few_programs_are_kept():
    for i in range(20):
        add = lambda x, args, kwargs, i=i: x + i
        assert compiled((i,), add, (), {})(1) == 1 + i
    assert len(programs._kept) == programs._MOST_KEPT
    never = lambda *inputs: pytest.fail("a kept program is not made again")
    twice = [compiled((19,), never, (), {}) for _ in range(2)]
    assert [run(5) for run in twice] == [24, 24]
    unhashable = compiled((), lambda x, args, kwargs: x, ({1, 2},), {})
    assert unhashable(3) == 3


@pytest.mark.parametrize("turns", [2, 2000])
def test_only_a_program_that_computes_much_is_optimised(turns, monkeypatch):
    """By the elements that its operations write, loops of known length counted."""
    used = []

    def jit(function, compiler_options=None):
        program = jax_jit(function)

        def run(*inputs):
            used.append(compiler_options)
            return program(*inputs)

        run.trace = program.trace
        return run

    jax_jit, plain = jax.jit, {"plain": 1}
    monkeypatch.setattr(programs, "_plain_options", lambda: plain)
    monkeypatch.setattr(programs.jax, "jit", jit)
    monkeypatch.setattr(programs, "_kept", type(programs._kept)())
    monkeypatch.setattr(programs, "_MUCH", 1e6)
    many = jnp.zeros(1000)

    def loop(x, args, kwargs):
        step = lambda _, y: jnp.cos(y)
        return jax.lax.fori_loop(0, turns, step, many + x)[0]

    run = compiled(("loop", turns), loop, (), {})
    assert np.isfinite(run(0.0))
    assert used == [plain if turns == 2 else None]
    # inside another program it is a part of that
    jax_jit(run)(0.0)
    assert used[1] is None


def test_options_that_the_compiler_does_not_know_are_left_out():
    assert programs._is_known("xla_backend_optimization_level", 0)
    assert not programs._is_known("xla_no_such_option", 0)
    assert set(programs._plain_options()) <= set(programs._PLAIN)


def test_programs_are_dropped_before_the_process_is_full(monkeypatch, tmp_path):
    limit, maps = tmp_path / "limit", tmp_path / "maps"
    monkeypatch.setattr(programs, "_LIMIT", limit)
    monkeypatch.setattr(programs, "_MAPPINGS", maps)
    programs.make_room()  # another system
    limit.write_text("100\n")
    maps.write_text("a mapping\n" * 60)
    compiled(("kept",), lambda args, kwargs: 1, (), {})
    programs.make_room()
    assert programs._kept
    maps.write_text("a mapping\n" * 80)
    with pytest.warns(UserWarning, match="80 of the 100 memory mappings"):
        programs.make_room()
    assert not programs._kept


def test_equal_by_value_and_type_or_by_identity():
    one = jax.numpy.ones(2)
    assert ById(one) == ById(one) != ById(jnp.ones(2))
    values = [programs.ByValue(v) for v in (1, 1.0, True, 1)]
    assert values[0] == values[3]
    assert len(set(values)) == 3
