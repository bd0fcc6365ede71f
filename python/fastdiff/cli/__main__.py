# SPDX-License-Identifier: Apache-2.0
"""``python -m fastdiff.cli`` is ``fastdiff``."""

from fastdiff.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
