# SPDX-License-Identifier: Apache-2.0
"""Bridges to other libraries. Each is imported by name, when it is used: `import fastdiff` needs none of them."""
