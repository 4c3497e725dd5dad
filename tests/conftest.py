"""Tests run on the CPU with eight devices, fixed seeds, and a cache of compiled programs.

NOVOCLIP_TEST_PLATFORM=cuda runs them on a GPU, for the tests of numerics: benchmarks/accelerator.py does.
"""

import os

from tests import programs

# Before JAX starts.
platform = os.environ.get("NOVOCLIP_TEST_PLATFORM", "cpu")
os.environ |= programs.CACHE | {"JAX_PLATFORMS": platform, "XLA_FLAGS": programs.flags(devices=8)}

from hypothesis import settings
import jax
import jax.experimental
import pytest

collect_ignore = ["trajectories/make.py", "trajectories/make_rules.py"]  # need torch, Keras, authors' code
settings.register_profile("novoclip", deadline=None, derandomize=True, max_examples=50)
settings.load_profile("novoclip")


@pytest.fixture
def x64():
    # jax.enable_x64 is the newer name.
    enable = jax.enable_x64 if hasattr(jax, "enable_x64") else jax.experimental.enable_x64
    with enable(True):
        yield
