"""Tests run on the CPU with eight devices, fixed seeds, and a cache of compiled programs."""

import os
from pathlib import Path

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"

from hypothesis import settings
import jax
import jax.experimental
import pytest

jax.config.update("jax_compilation_cache_dir", str(Path(__file__).parent.parent / ".jax_cache"))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.3)
collect_ignore = ["trajectories/make.py", "trajectories/make_rules.py"]  # need torch, Keras, authors' code
settings.register_profile("novoclip", deadline=None, derandomize=True, max_examples=50)
settings.load_profile("novoclip")


@pytest.fixture
def x64():
    # jax.enable_x64 is the newer name.
    enable = jax.enable_x64 if hasattr(jax, "enable_x64") else jax.experimental.enable_x64
    with enable(True):
        yield
