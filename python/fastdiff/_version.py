# SPDX-License-Identifier: Apache-2.0
"""The version, alone in a file: the build reads it without importing the package."""

__version__ = "0.1.0"
