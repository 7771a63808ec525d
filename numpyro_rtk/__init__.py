"""Learn a prior from samples, write it in NumPyro, get a correct posterior."""

from importlib.metadata import version as _version

from numpyro_rtk import schedules
from numpyro_rtk.core.mala import MALA
from numpyro_rtk.core.uld import ULD
from numpyro_rtk.diagnostics.evidence import log_evidence
from numpyro_rtk.diagnostics.exchange import diagnose
from numpyro_rtk.diagnostics.modes import check_modes
from numpyro_rtk.diagnostics.prior import check_prior
from numpyro_rtk.diagnostics.weights import (
    importance_resample,
    pareto_k,
    weighted_sample_size,
)
from numpyro_rtk.distillation import distill
from numpyro_rtk.gaussians import GaussianMixture
from numpyro_rtk.io import load, save
from numpyro_rtk.kernels.particle_gibbs import RTKParticleGibbs
from numpyro_rtk.kernels.replica_exchange import RTKReplicaExchange
from numpyro_rtk.kernels.rtk_mala import RTKMALA
from numpyro_rtk.kernels.rtk_uld import RTKULD
from numpyro_rtk.learn import fit
from numpyro_rtk.named import learned_sites
from numpyro_rtk.networks.energy_mlp import EnergyMLP
from numpyro_rtk.networks.energy_set import EnergySet
from numpyro_rtk.networks.energy_unet import EnergyUNet
from numpyro_rtk.networks.model import EnergyModel, ScoreModel
from numpyro_rtk.networks.score_mlp import ScoreMLP
from numpyro_rtk.networks.score_unet import ScoreUNet
from numpyro_rtk.prior import LearnedPrior
from numpyro_rtk.training.options import Training

__version__ = _version("numpyro-rtk")
__all__ = [
    "MALA",
    "RTKMALA",
    "RTKULD",
    "ULD",
    "EnergyMLP",
    "EnergyModel",
    "EnergySet",
    "EnergyUNet",
    "GaussianMixture",
    "LearnedPrior",
    "RTKParticleGibbs",
    "RTKReplicaExchange",
    "ScoreMLP",
    "ScoreModel",
    "ScoreUNet",
    "Training",
    "check_modes",
    "check_prior",
    "diagnose",
    "distill",
    "fit",
    "importance_resample",
    "learned_sites",
    "load",
    "log_evidence",
    "pareto_k",
    "save",
    "schedules",
    "weighted_sample_size",
]


def __dir__() -> list[str]:
    """The public names; modules are found by their path."""
    return [*__all__, "__version__"]
