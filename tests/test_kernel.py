"""What a process pays for its first kernel."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

PROGRAM = """
import sys
import numpy as np
import pyarrow as pa
from aaflow.hashing import sha256
from aaflow.kernel import kernel

sha256(pa.array(["a"]))
print("scipy.linalg" in sys.modules)

@kernel
def dot(a, b):
    return np.dot(a, b)

print(dot(np.ones(3), np.ones(3)), "scipy.linalg" in sys.modules)
"""


def test_only_a_kernel_that_calls_blas_imports_scipy(tmp_path: Path) -> None:
    program = tmp_path / "program.py"  # numba caches what has a file
    program.write_text(PROGRAM)
    done = subprocess.run([sys.executable, str(program)], capture_output=True, text=True, check=False)
    assert done.stdout.split() == ["False", "3.0", "True"], done.stderr
