# SPDX-License-Identifier: Apache-2.0
"""Guidance methods as tables: one file per method, no native code. Their public home is `fastdiff.guidance`."""

from fastdiff.guiders._guidance import Guidance
from fastdiff.guiders._rows import Rows
from fastdiff.guiders.adaptive_guidance import AdaptiveGuidance
from fastdiff.guiders.apg import APG
from fastdiff.guiders.banded import Banded
from fastdiff.guiders.black_scholes import BlackScholes
from fastdiff.guiders.cfg import CFG, PowerCosine, RescaledCFG
from fastdiff.guiders.cfg_plus_plus import CFGPlusPlus
from fastdiff.guiders.cfg_zero_star import CFGZeroStar
from fastdiff.guiders.compose import Compose
from fastdiff.guiders.frequency_decoupled import FrequencyDecoupled
from fastdiff.guiders.linear_ag import LinearAG, Regression, fit_linear_ag
from fastdiff.guiders.magnitude_aware import MagnitudeAware
from fastdiff.guiders.norm_balanced import NormBalanced
from fastdiff.guiders.perp_neg import PerpNeg
from fastdiff.guiders.perturbed import Perturbed
from fastdiff.guiders.regional import Regional
from fastdiff.guiders.tcfg import TCFG

__all__ = [
    "APG",
    "CFG",
    "TCFG",
    "AdaptiveGuidance",
    "Banded",
    "BlackScholes",
    "CFGPlusPlus",
    "CFGZeroStar",
    "Compose",
    "FrequencyDecoupled",
    "Guidance",
    "LinearAG",
    "MagnitudeAware",
    "NormBalanced",
    "PerpNeg",
    "Perturbed",
    "PowerCosine",
    "Regional",
    "Regression",
    "RescaledCFG",
    "Rows",
    "fit_linear_ag",
]
