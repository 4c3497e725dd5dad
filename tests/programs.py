"""Programs of the tests' own, started beside them, and how XLA compiles here."""

import importlib.metadata
import os
from pathlib import Path
import re
import subprocess
import sys

import pytest

ROOT = Path(__file__).parent.parent
JAXLIB = tuple(map(int, re.findall(r"\d+", importlib.metadata.version("jaxlib"))[:2]))
OPTAX = tuple(map(int, re.findall(r"\d+", importlib.metadata.version("optax"))[:3]))
# For tests that look for copies in compiled programs.
WRITES_IN_PLACE = pytest.mark.skipif(
    JAXLIB < (0, 10),
    reason="XLA of jax 0.7.2 keeps a float32 copy of the gradients for any rule or optimizer; 0.10.2 does not",
)
# For tests that sum 16-bit gradients in a scan.
SUMS_IN_ONE_DTYPE = pytest.mark.skipif(
    OPTAX < (0, 2, 8), reason="MultiSteps of optax 0.2.6 changes the dtype of its own sum; that of 0.2.8 does not"
)

# Less optimization, the same IEEE arithmetic: compiling takes half of the time, and is most of what the tests do.
# Flags that XLA does not know end the process, so only versions that were tried get them.
QUICK = (
    "--xla_backend_optimization_level=0",
    "--xla_llvm_disable_expensive_passes=true",
    "--xla_cpu_parallel_codegen_split_count=1",
)
TRIED = ((0, 10), (0, 13))
OLDER_THAN_12 = ("--xla_cpu_use_fusion_emitters=false",)
PLATFORM = os.environ.get("NOVOCLIP_TEST_PLATFORM", "cpu")
DEVICES = "--xla_force_host_platform_device_count"
# A call that must never end is ended after this many seconds: a hang, whatever the machine.
HANG = 20 * 60


def flags(devices=None):
    """The value of XLA_FLAGS. With NOVOCLIP_XLA=usual, programs are optimized as users' are."""
    quick = ()
    if os.environ.get("NOVOCLIP_XLA") != "usual" and TRIED[0] <= JAXLIB < TRIED[1]:
        quick = (*QUICK, *(OLDER_THAN_12 if JAXLIB < (0, 12) else ()))
    own = (*QUICK, *OLDER_THAN_12)
    given = [flag for flag in os.environ.get("XLA_FLAGS", "").split() if flag not in own and DEVICES not in flag]
    return " ".join([*given, *quick, *([f"{DEVICES}={devices}"] if devices else [])])


def start(module, *arguments, **environment):
    """Start `python -m module`."""
    inherited = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
    return subprocess.Popen(
        [sys.executable, "-W", "error", "-m", module, *map(str, arguments)],
        env=inherited | {"PYTHONPATH": str(ROOT)} | environment,
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
