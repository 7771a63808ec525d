"""Learn a prior from samples, write it in NumPyro, get a correct posterior."""

from numpyro_rtk.arviz_bridge import pareto_k as pareto_k
from numpyro_rtk.check import check_prior as check_prior
from numpyro_rtk.check_modes import check_modes as check_modes
from numpyro_rtk.diagnostics import (
    importance_resample as importance_resample,
    weighted_sample_size as weighted_sample_size,
)
from numpyro_rtk.io import load as load, save as save
from numpyro_rtk.kernels.replica_exchange import (
    RTKReplicaExchange as RTKReplicaExchange,
)
from numpyro_rtk.kernels.rtk_mala import RTKMALA as RTKMALA
from numpyro_rtk.kernels.rtk_uld import RTKULD as RTKULD
from numpyro_rtk.learn import fit as fit
from numpyro_rtk.mixture import GaussianMixture as GaussianMixture
from numpyro_rtk.named import learned_sites as learned_sites
from numpyro_rtk.networks.energy_mlp import EnergyMLP as EnergyMLP
from numpyro_rtk.networks.energy_set import EnergySet as EnergySet
from numpyro_rtk.networks.energy_unet import EnergyUNet as EnergyUNet
from numpyro_rtk.networks.model import (
    EnergyModel as EnergyModel,
    ScoreModel as ScoreModel,
)
from numpyro_rtk.networks.score_mlp import ScoreMLP as ScoreMLP
from numpyro_rtk.networks.score_unet import ScoreUNet as ScoreUNet
from numpyro_rtk.prior import LearnedPrior as LearnedPrior
from numpyro_rtk.report import diagnose as diagnose, log_evidence as log_evidence
