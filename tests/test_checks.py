"""The checks of arguments: one wording, and the right kind of error."""

from fractions import Fraction

import numpy as np
import pytest

from numpyro_rtk._checks import (
    check_bool,
    check_fraction,
    check_non_negative_int,
    check_positive,
    check_positive_int,
)

ACCEPTED = [
    (check_bool, True),
    (check_bool, np.bool_(False)),
    (check_positive_int, 1),
    (check_positive_int, np.int64(3)),
    (check_non_negative_int, 0),
    (check_non_negative_int, np.int32(2)),
    (check_positive, 1e-300),
    (check_positive, 2),
    (check_positive, np.float32(0.5)),
    (check_fraction, 0.5),
    (check_fraction, Fraction(1, 3)),
]
REFUSED = [
    (check_bool, 1, TypeError, "True or False; got 1"),
    (check_bool, None, TypeError, "True or False; got None"),
    (check_positive_int, 0, ValueError, "at least 1; got 0"),
    (check_positive_int, -2, ValueError, "at least 1; got -2"),
    (check_positive_int, 1.0, TypeError, "an integer; got 1.0"),
    (check_positive_int, True, TypeError, "an integer; got True"),
    (check_positive_int, None, TypeError, "an integer; got None"),
    (check_non_negative_int, -1, ValueError, "at least 0; got -1"),
    (check_non_negative_int, "2", TypeError, "an integer; got '2'"),
    (check_non_negative_int, False, TypeError, "an integer; got False"),
    (check_positive, 0.0, ValueError, "positive and finite; got 0.0"),
    (check_positive, -1, ValueError, "positive and finite; got -1"),
    (check_positive, float("nan"), ValueError, "positive and finite; got nan"),
    (check_positive, float("inf"), ValueError, "positive and finite; got inf"),
    (check_positive, 1j, TypeError, "a real number; got 1j"),
    (check_positive, True, TypeError, "a real number; got True"),
    (check_fraction, 0, ValueError, "between 0 and 1; got 0"),
    (check_fraction, 1.0, ValueError, "between 0 and 1; got 1.0"),
    (check_fraction, float("nan"), ValueError, "between 0 and 1; got nan"),
    (check_fraction, [0.5], TypeError, r"a real number; got \[0.5\]"),
]


@pytest.mark.parametrize(("check", "value"), ACCEPTED)
def test_accepted(check, value):
    check("option", value)


@pytest.mark.parametrize(("check", "value", "error", "message"), REFUSED)
def test_refused(check, value, error, message):
    with pytest.raises(error, match=f"`option` must be {message}"):
        check("option", value)
