# SPDX-License-Identifier: Apache-2.0
"""Solvers as tables: each planner computes, in float64, the coefficients of all steps of a sampler."""

from fastdiff.planners.ddim import ddim
from fastdiff.planners.dpm_solver_pp import dpm_solver_pp
from fastdiff.planners.euler import euler
from fastdiff.planners.plan import Plan

__all__ = ["Plan", "ddim", "dpm_solver_pp", "euler"]
