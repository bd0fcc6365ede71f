# SPDX-License-Identifier: Apache-2.0
"""The kernels on NumPy arrays: `fastdiff._C` knows nothing of torch, and neither does this program.

`load_kernels` imports the module from its own file, because `import fastdiff` would import torch.
"""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import numpy as np


def load_kernels() -> ModuleType:
    """fastdiff._C, without running fastdiff/__init__.py."""
    package = importlib.util.find_spec("fastdiff")  # finds the package, does not import it
    if package is None or package.origin is None:
        raise ImportError("fastdiff is not installed")
    file = next(Path(package.origin).parent.glob("_C.*.so"))
    spec = importlib.util.spec_from_file_location("fastdiff._C", file)
    if spec is None or spec.loader is None:
        raise ImportError(f"{file} is no extension module")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def main() -> None:
    kernels = load_kernels()
    random = np.random.default_rng(0)
    x, eps = (random.standard_normal((2, 4, 8, 8), dtype=np.float32) for _ in range(2))

    # Rows x0 = clamp(1.5 x - 1.1 eps, -1, 1) and x' = 0.3 eps + 0.9 x0 + 0.1 z; columns x, eps, x0, x', z, lo, hi
    table = np.array(
        [[1.5, -1.1, 0, 0, 0, -1, 1], [0, 0.3, 0.9, 0, 0.1, -np.inf, np.inf]],
        dtype=np.float64,
    )
    x0, following = np.empty_like(x), np.empty_like(x)
    rng = np.array([42, 0])  # (seed, offset)
    kernels.linear_step([x, eps], table, [x0, following], rng=rng)

    expected = np.clip(1.5 * x - 1.1 * eps, -1, 1)
    z = (following - 0.3 * eps - 0.9 * expected) / 0.1
    print(f"x0: largest difference from NumPy {np.abs(x0 - expected).max():.0e}")
    print(f"noise: mean {z.mean():+.2f}, standard deviation {z.std():.2f}")
    print(f"instruction set {kernels.facts()['isa_used']}; torch imported: {'torch' in sys.modules}")


if __name__ == "__main__":
    main()
