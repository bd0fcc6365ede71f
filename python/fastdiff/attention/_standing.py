# SPDX-License-Identifier: Apache-2.0
"""Plans that calls without one need again and again."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable

import torch
from torch import Tensor

from fastdiff.attention._plan import AttentionPlan

MOST = 64
_kept: OrderedDict[Hashable, AttentionPlan] = OrderedDict()


def standing_plan(make: Callable[[], AttentionPlan], name: Hashable, device: torch.device) -> AttentionPlan:
    """make(), or what it gave the last time for this name.

    One for each stream, which may not wait for another; none that was made while a graph was traced or captured, whose
    tensors are not there yet; and none of inference mode, which training could not save.
    """
    if torch.compiler.is_compiling():
        return make()
    stream = 0
    if device.type == "cuda":
        if torch.cuda.is_current_stream_capturing():
            return make()
        stream = torch.cuda.current_stream(device).cuda_stream
    key = (name, device, stream)
    if key in _kept:
        _kept.move_to_end(key)
        return _kept[key]
    with torch.inference_mode(False):
        plan = make()
    if type(plan.offsets) is Tensor:  # no tensor of a mode that computes nothing
        _kept[key] = plan
        if len(_kept) > MOST:
            _kept.popitem(last=False)
    return plan
