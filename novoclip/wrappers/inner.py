"""The check of the transform that a wrapper takes, and the dtype that wrappers compute in."""

from typing import Any

import jax.numpy as jnp
import optax

from novoclip.ranges import accumulation_dtype
from novoclip.transforms import check_transform


def checked_inner(inner: Any) -> optax.GradientTransformationExtraArgs:
    """Return the transform, or raise a TypeError if it is not one."""
    if isinstance(inner, optax.MultiSteps):  # which takes extra arguments, though its type does not say so
        inner = optax.GradientTransformationExtraArgs(inner.init, inner.update)
    check_transform("inner", inner)
    return optax.with_extra_args_support(inner)


def wide_dtype(dtype: Any) -> Any:
    """Return float32 for 16-bit floats; other dtypes as they are."""
    if jnp.issubdtype(dtype, jnp.complexfloating):
        return dtype
    return accumulation_dtype(dtype)
