"""The flat position: its order is one order everywhere."""

import jax.numpy as jnp
import numpy as np

from numpyro_rtk.kernels.problem.flat import Flat, Site

FLAT = Flat(
    learned=(Site("b", (2,)), Site("a", ())),
    ordinary=(Site("d", (1, 3)), Site("c", (2,))),
)


def test_sites_are_split_and_joined_in_one_order():
    position = jnp.arange(float(FLAT.dim))
    values = FLAT.split(position)
    np.testing.assert_array_equal(values["b"], [0.0, 1.0])
    np.testing.assert_array_equal(values["a"], 2.0)
    np.testing.assert_array_equal(values["d"], [[3.0, 4.0, 5.0]])
    np.testing.assert_array_equal(values["c"], [6.0, 7.0])
    np.testing.assert_array_equal(FLAT.join(values), position)
    # the ordinary sites come last, alone as with the others
    ordinary = FLAT.join_ordinary(values)
    np.testing.assert_array_equal(ordinary, position[-FLAT.num_ordinary :])
    names = FLAT.coordinate_names()
    assert names == ["b[0]", "b[1]", "a", "d[0,0]", "d[0,1]", "d[0,2]", "c[0]", "c[1]"]
