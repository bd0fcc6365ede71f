# SPDX-License-Identifier: Apache-2.0
"""fastdiff: hand-written CUDA and C++ kernels for diffusion models in PyTorch.

Operators are ``torch.ops.fastdiff.*``, with thin wrappers of the same names here. Planners turn a noise schedule
into the coefficient table of a solver; a :class:`~fastdiff.planners.Plan` runs it.
"""

from fastdiff import _native, guidance, planners, schedules
from fastdiff._native import isa, use_isa
from fastdiff._version import __version__
from fastdiff.guidance import channel_affine, guidance_coefficients, guidance_stats, window_blend
from fastdiff.solver import dynamic_threshold, linear_step, scaled_error_norm
from fastdiff.wavelet import dwt, idwt, wavedec, waverec

_native.load()

__all__ = [
    "__version__",
    "channel_affine",
    "dwt",
    "dynamic_threshold",
    "guidance",
    "guidance_coefficients",
    "guidance_stats",
    "idwt",
    "isa",
    "linear_step",
    "planners",
    "scaled_error_norm",
    "schedules",
    "use_isa",
    "wavedec",
    "waverec",
    "window_blend",
]
