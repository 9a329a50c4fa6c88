"""A strict JAX for the whole suite: eight host devices, no silent rank promotion."""

import jax
import pytest
from hypothesis import settings

import helpers

# Before the first array: the CPU backend starts with them.
jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_rank_promotion", "raise")

# The same examples everywhere; compiling makes any deadline meaningless.
settings.register_profile("steady", derandomize=True, deadline=None, database=None)
settings.load_profile("steady")


@pytest.fixture
def x64():
    """Double precision within one test; the switch is global to the thread."""
    with helpers.enable_x64():
        yield
