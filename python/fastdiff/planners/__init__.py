# SPDX-License-Identifier: Apache-2.0
"""Solvers as tables: each planner computes, in float64, the coefficients of all steps of a sampler."""

from fastdiff.planners._execution import Threshold
from fastdiff.planners.consistency import consistency
from fastdiff.planners.ddim import ddim
from fastdiff.planners.ddim_inversion import ddim_inversion
from fastdiff.planners.ddpm import ddpm
from fastdiff.planners.deis import deis
from fastdiff.planners.dpm_solver import dpm_solver
from fastdiff.planners.dpm_solver_adaptive import AdaptiveResult, dpm_solver_adaptive
from fastdiff.planners.dpm_solver_pp import dpm_solver_pp
from fastdiff.planners.euler import euler
from fastdiff.planners.euler_ancestral import euler_ancestral
from fastdiff.planners.euler_per_token import TokenPlan, euler_per_token
from fastdiff.planners.heun import heun
from fastdiff.planners.ipndm import ipndm
from fastdiff.planners.kdpm2 import kdpm2
from fastdiff.planners.langevin import langevin
from fastdiff.planners.lcm import lcm
from fastdiff.planners.lms import lms
from fastdiff.planners.plan import Plan
from fastdiff.planners.pndm import pndm
from fastdiff.planners.reverse_sde import reverse_sde
from fastdiff.planners.sa_solver import sa_solver
from fastdiff.planners.tcd import tcd
from fastdiff.planners.unipc import unipc

__all__ = [
    "AdaptiveResult",
    "Plan",
    "Threshold",
    "TokenPlan",
    "consistency",
    "ddim",
    "ddim_inversion",
    "ddpm",
    "deis",
    "dpm_solver",
    "dpm_solver_adaptive",
    "dpm_solver_pp",
    "euler",
    "euler_ancestral",
    "euler_per_token",
    "heun",
    "ipndm",
    "kdpm2",
    "langevin",
    "lcm",
    "lms",
    "pndm",
    "reverse_sde",
    "sa_solver",
    "tcd",
    "unipc",
]
