"""Tests run on the CPU with eight devices and fixed seeds.

NOVOCLIP_TEST_PLATFORM=cuda runs them on a GPU, for the tests of numerics: benchmarks/accelerator.py does.
"""

import gc
import os
from pathlib import Path

from tests import programs, thinned

# Before JAX starts.
os.environ |= {"JAX_PLATFORMS": programs.PLATFORM, "XLA_FLAGS": programs.flags(devices=8)}
# To shorten tracebacks, JAX asks the file system about each of their lines, at every error that a test expects; and
# programs carry the lines of source that they come from, which takes time to write.
os.environ.setdefault("JAX_TRACEBACK_FILTERING", "off")
os.environ.setdefault("JAX_TRACEBACK_IN_LOCATIONS_LIMIT", "0")

from hypothesis import settings
import jax
import jax.experimental
import pytest

collect_ignore = ["trajectories/make.py", "trajectories/make_rules.py"]  # need torch, Keras, authors' code
MOST = 2.1e9  # bytes of memory
# Traces are full of cycles that live as long as a test does; collecting them often took 4 % of the time.
gc.set_threshold(100_000, 50, 50)
settings.register_profile("novoclip", deadline=None, derandomize=True, max_examples=50)
settings.load_profile("novoclip")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    thinned.thin(items)


@pytest.fixture(scope="module", autouse=True)
def programs_are_dropped_when_they_are_many():
    """Compiled programs are kept while they take less than MOST bytes: few are shared by tests of several modules."""
    yield
    if resident() > MOST:
        jax.clear_caches()
        gc.collect()


def resident():
    """The bytes of memory that this process holds now, where the system says so."""
    path = Path("/proc/self/statm")
    return int(path.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") if path.exists() else 0


@pytest.fixture
def x64():
    # jax.enable_x64 is the newer name.
    enable = jax.enable_x64 if hasattr(jax, "enable_x64") else jax.experimental.enable_x64
    with enable(True):
        yield
