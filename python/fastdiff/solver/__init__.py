# SPDX-License-Identifier: Apache-2.0
"""Solver updates: one op and many tables, and the reductions that some solvers need."""

from fastdiff.solver.dynamic_threshold import dynamic_threshold
from fastdiff.solver.linear_step import linear_step
from fastdiff.solver.scaled_error_norm import scaled_error_norm

__all__ = ["dynamic_threshold", "linear_step", "scaled_error_norm"]
