"""Programs of the tests' own, started beside them."""

import os
from pathlib import Path
import subprocess
import sys

ROOT = Path(__file__).parent.parent


# Compiled programs are kept from one test run to the next.
CACHE = {"JAX_COMPILATION_CACHE_DIR": str(ROOT / ".jax_cache"), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.3"}


def start(module, *arguments, **environment):
    """Start `python -m module`."""
    inherited = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
    return subprocess.Popen(
        [sys.executable, "-W", "error", "-m", module, *map(str, arguments)],
        env=inherited | CACHE | {"PYTHONPATH": str(ROOT)} | environment,
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
