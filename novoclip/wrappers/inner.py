"""What wrappers ask of the transform that they stand around, and the dtype that they compute in."""

from typing import Any

import jax.numpy as jnp
import optax

from novoclip.blocks import accumulation_dtype


def checked_inner(inner: Any) -> optax.GradientTransformationExtraArgs:
    """Return the transform, or raise a TypeError if it is none."""
    if isinstance(inner, optax.MultiSteps):  # which takes extra arguments, though its type does not say so
        inner = optax.GradientTransformationExtraArgs(inner.init, inner.update)
    if not (hasattr(inner, "init") and hasattr(inner, "update")):
        msg = f"inner must be a GradientTransformation, such as clip_by_global_norm(1.0); got {inner!r}"
        raise TypeError(msg)
    return optax.with_extra_args_support(inner)


def wide_dtype(dtype: Any) -> Any:
    """Return float32 for 16-bit floats; other dtypes as they are."""
    if jnp.issubdtype(dtype, jnp.complexfloating):
        return dtype
    return accumulation_dtype(dtype)
