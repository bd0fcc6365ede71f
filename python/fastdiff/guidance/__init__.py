# SPDX-License-Identifier: Apache-2.0
"""Guidance: the blends of several predictions, and the per-sample reductions that some of them need.

The classes are called on predictions, ``g(cond, uncond, ...) -> guided``, or handed to a plan,
``plan.run(model, x, guidance=g)``; the operators under them are here too.
"""

from fastdiff.guidance.channel_affine import channel_affine
from fastdiff.guidance.guidance_coefficients import call_price, guidance_coefficients
from fastdiff.guidance.guidance_stats import cosine, guidance_stats
from fastdiff.guidance.window_blend import window_blend, window_views

# After the operators, which they use.
from fastdiff import guiders  # isort: skip
from fastdiff.guiders import *  # isort: skip  # noqa: F403

__all__ = [
    "call_price",
    "channel_affine",
    "cosine",
    "guidance_coefficients",
    "guidance_stats",
    "window_blend",
    "window_views",
]
__all__ += guiders.__all__
