# SPDX-License-Identifier: Apache-2.0
"""Benchmarks: ``fastdiff bench``. One file per op, named after it; ``kit`` measures, ``report`` shows."""
