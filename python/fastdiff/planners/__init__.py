# SPDX-License-Identifier: Apache-2.0
"""Solvers as tables: each planner computes, in float64, the coefficients of all steps of a sampler."""

from fastdiff.planners._execution import Threshold
from fastdiff.planners.ddim import ddim
from fastdiff.planners.dpm_solver import dpm_solver
from fastdiff.planners.dpm_solver_pp import dpm_solver_pp
from fastdiff.planners.euler import euler
from fastdiff.planners.lcm import lcm
from fastdiff.planners.plan import Plan
from fastdiff.planners.tcd import tcd

__all__ = ["Plan", "Threshold", "ddim", "dpm_solver", "dpm_solver_pp", "euler", "lcm", "tcd"]
