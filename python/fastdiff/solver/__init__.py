# SPDX-License-Identifier: Apache-2.0
"""Solver updates: one op, many tables."""

from fastdiff.solver.linear_step import linear_step

__all__ = ["linear_step"]
