"""What ``rtk.diagnose`` says, sentence by sentence, of numbers alone."""

import re

import numpy as np
import pytest

from numpyro_rtk.core.warmup.population import narrowest_found
from numpyro_rtk.diagnostics import exchange_sentences as sentences
from numpyro_rtk.diagnostics.exchange_sentences import ExchangeNumbers

QUIET = ExchangeNumbers(
    accept=np.full(6, 0.6),
    local=np.full(6, 0.65),
    trips=np.array([3.0, 4.0]),
    num_draws=100,
    energy=np.full((2, 100), 3.0),
    rounding=1e-6,
    diverging=0.0,
    evidence=(-1.0, 0.05),
    found_evidence=(-1.1, 0.05),
    shares=np.array([[0.25, 0.75], [0.35, 0.65]]),
    found_share=np.array([0.3, 0.7]),
    found_error=np.array([0.03, 0.03]),
    places=("x[0] = -1", "x[0] = 1"),
    disagreeing=np.array([], int),
    efficiency=0.001,
    further_out=0.3,
    num_particles=2048,
    num_informed=0.4,
    has_likelihood=True,
)
EDGES = lambda *values: np.array(values, float)

# name: (sentence, pattern, numbers where it appears, numbers where it does not)
SENTENCES = {
    "too few levels": (
        sentences._says_too_few_levels,
        r"accepted with 0\.20 on average. Set `num_levels=\d+`",
        {"accept": np.full(6, 0.2)},
        [{"accept": np.full(6, 0.31)}, {"accept": EDGES(0.01, 0.8, 0.8)}],
    ),
    "gap": (
        sentences._says_gap,
        r"between levels 1 and 2 \(acceptance 0\.05\)",
        {"accept": EDGES(0.6, 0.05, 0.6)},
        # an even ladder, and one that the sentence before is about
        [{"accept": EDGES(0.6, 0.12, 0.6)}, {"accept": EDGES(0.2, 0.05, 0.2)}],
    ),
    "no round trip": (
        sentences._says_no_round_trip,
        r"No replica has gone .* in 100 draws.*`num_levels=6`",
        {"trips": np.zeros(2)},
        [{"trips": EDGES(0, 1)}],
    ),
    "lost modes": (
        sentences._says_lost_modes,
        r"around x\[0\] = -1: 0\.30 \+- 0\.03 of the particles, 0\.005 of the draws",
        {"shares": np.array([[0.0, 1.0], [0.01, 0.99]])},
        [
            {"shares": np.array([[0.0, 1.0], [0.2, 0.8]])},  # one chain has it
            # the particles do not know of it either; a region of nothing
            {"shares": np.array([[0.0, 1.0]] * 2), "found_error": np.full(2, 0.25)},
            {
                "shares": np.array([[0.0, 1.0]] * 2),
                "found_share": np.array([0.005, 0.995]),
                "found_error": np.full(2, 0.001),
            },
            {"shares": np.zeros((2, 0)), "found_share": np.zeros(0)},  # sequential
        ],
    ),
    "chains disagree": (
        sentences._says_chains_disagree,
        r"around x\[0\] = -1: 0\.10 to 0\.50 by chain",
        {"shares": np.array([[0.1, 0.9], [0.5, 0.5]])},
        [
            {"shares": np.array([[0.2, 0.8], [0.45, 0.55]])},
            {"shares": np.array([[0.1, 0.9]])},  # one chain alone
            # few draws
            {"shares": np.array([[0.1, 0.9], [0.5, 0.5]]), "num_draws": 30},
            {"shares": np.zeros((2, 0))},
        ],
    ),
    "other evidence": (
        sentences._says_other_evidence,
        r"-1\.00, is below the population's, -0\.60 \+- 0\.05",
        {"found_evidence": (-0.6, 0.05)},
        [
            {"found_evidence": (-0.75, 0.01)},  # under .3 nats
            {"found_evidence": (-0.5, 0.2)},  # within three errors
            {"found_evidence": (-1.7, 0.05)},  # the run has found more
            {"found_evidence": (-0.2, np.inf)},  # of too few ancestors
            # where it is unknown there is nothing to compare
            {"evidence": (8.0, np.inf)},
        ],
    ),
    "unknown evidence": (
        sentences._says_unknown_evidence,
        r"log evidence is unknown.*\(\d+ for an acceptance of a half\)",
        {"evidence": (8.0, np.inf)},
        [{"evidence": (8.0, 3.0)}],
    ),
    "no density": (
        sentences._says_no_density,
        r"50 % of the draws have no density",
        {"energy": np.array([[3.0, np.inf], [3.0, np.inf]])},
        [{"energy": np.array([[3.0, 900.0]])}],
    ),
    "coarse": (
        sentences._says_coarse,
        r"so large that numbers of this type resolve it to 1\.2 nats",
        {"rounding": 1.2},
        [{"rounding": 0.01, "energy": np.array([[1e7, 1e7]])}],
    ),
    "stuck": (
        sentences._says_stuck,
        r"refused at level\(s\) 0, 2 \(acceptance 0\.05\)",
        {"local": EDGES(0.1, 0.6, 0.05)},
        [{"local": EDGES(0.2, 0.6, 0.16)}],
    ),
    "prior disagrees": (
        sentences._says_prior_disagrees,
        r"at levels 4, 5 the best factor",
        {"disagreeing": np.array([3, 4])},
        # one edge may be off by chance, and of 16 edges two
        [
            {"disagreeing": np.array([3])},
            {"disagreeing": np.array([3, 4]), "accept": np.full(16, 0.6)},
        ],
    ),
    "diverging": (
        sentences._says_diverging,
        r"More than one draw in a hundred has a diverging local move",
        {"diverging": 0.02, "local": np.full(6, 0.3)},
        [
            {"diverging": 0.02},  # beside a hard edge
            {"diverging": 0.005, "local": np.full(6, 0.3)},
        ],
    ),
    "far out": (
        sentences._says_far_out,
        r"0\.5 % of the prior's own draws are less probable",
        {"further_out": 0.005},
        [{"further_out": 0.02}, {"further_out": np.nan}],
    ),
    "not excluded": (
        sentences._says_not_excluded,
        # (10 / 2048)^(1 / 5)
        r"less than 0\.34 times as wide.*all 5 directions.*2048 particles may lose",
        {"num_informed": 4.97},
        [{"num_informed": 0.9}, {"num_informed": 4.97, "has_likelihood": False}],
    ),
    "likelihood weak": (
        sentences._says_likelihood_weak,
        r"about 30 in 100 independent prior draws",
        {"efficiency": 0.3},
        [{"efficiency": 0.01}, {"efficiency": np.nan}],
    ),
    "many levels": (
        sentences._says_many_levels,
        r"accepted with 0\.90: fewer levels pass as well.*`num_levels=3`",
        {"accept": np.full(6, 0.9)},
        [{"accept": np.full(6, 0.84)}],
    ),
}


def test_the_table_has_every_sentence():
    said = (*sentences.PROBLEMS, *sentences.LIMITS, *sentences.REMARKS)
    assert {row[0] for row in SENTENCES.values()} == set(said)
    assert len(SENTENCES) == len(said)
    assert not any(say(QUIET) for say in said)


@pytest.mark.parametrize(
    ("say", "pattern", "there", "absent"), SENTENCES.values(), ids=SENTENCES
)
def test_each_sentence_of_numbers(say, pattern, there, absent):
    text = say(QUIET._replace(**there))
    assert text is not None
    assert re.search(pattern, text), text
    for numbers in absent:
        assert say(QUIET._replace(**numbers)) is None


def test_the_narrowest_mode():
    assert narrowest_found(1000, 1.0) == pytest.approx(0.01)
    assert narrowest_found(1000, 2.0) == pytest.approx(0.1)
