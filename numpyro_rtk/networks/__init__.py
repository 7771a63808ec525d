"""Learned densities: standardisation, networks and the models made of them."""

from numpyro_rtk.networks.base import AbstractEnergyNetwork, AbstractScoreNetwork
from numpyro_rtk.networks.energy_mlp import EnergyMLP
from numpyro_rtk.networks.energy_set import EnergySet
from numpyro_rtk.networks.energy_unet import EnergyUNet
from numpyro_rtk.networks.model import EnergyModel, ScoreModel
from numpyro_rtk.networks.score_mlp import ScoreMLP
from numpyro_rtk.networks.score_unet import ScoreUNet
from numpyro_rtk.networks.wrapped import WrappedScore

__all__ = [
    "AbstractEnergyNetwork",
    "AbstractScoreNetwork",
    "EnergyMLP",
    "EnergyModel",
    "EnergySet",
    "EnergyUNet",
    "ScoreMLP",
    "ScoreModel",
    "ScoreUNet",
    "WrappedScore",
]
