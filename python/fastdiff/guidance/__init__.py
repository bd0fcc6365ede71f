# SPDX-License-Identifier: Apache-2.0
"""Guidance: the blends of several predictions, and the per-sample reductions that some of them need."""

__all__: list[str] = []
