"""What a process pays for its first kernel."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

PROGRAM = """
import sys
import numpy as np
from aaflow.kernel import kernel

@kernel
def double(a):
    return 2 * a

@kernel
def total(a):
    return double(a)[0] + 4

def ready():
    return "scipy.linalg" in sys.modules or "numba.np.arraymath" in sys.modules

double(np.ones(3))
print(ready(), *(total(np.ones(3)) for call in sys.argv[1:]), ready())
"""


def test_only_a_process_that_compiles_a_kernel_gets_ready_for_it(tmp_path: Path) -> None:
    program = tmp_path / "program.py"  # numba caches what has a file

    def run(*arguments: str) -> list[str]:
        done = subprocess.run([sys.executable, str(program), *arguments], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout.split()

    program.write_text(PROGRAM)
    assert run() == ["True", "True"]
    assert run() == ["False", "False"]
    assert run("total") == ["False", "6.0", "True"]
    assert run("total") == ["False", "6.0", "False"]
