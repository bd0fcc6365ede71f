# SPDX-License-Identifier: Apache-2.0
"""The SIMT emulator: runs the CUDA kernels on the CPU. See README.md."""
