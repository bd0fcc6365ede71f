# SPDX-License-Identifier: Apache-2.0
"""Quantised and low-rank matrix products."""

from __future__ import annotations

__all__: list[str] = []
