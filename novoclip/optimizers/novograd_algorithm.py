"""The formula of NovoGrad with the options of its published implementations."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

from novoclip.arguments import check_choice, check_flag, check_number
from novoclip.granularity import checked_norm, resolve_fixed
from novoclip.measure import Measure, norm_shapes
from novoclip.optimizers.algorithm import Algorithm
from novoclip.optimizers.kept import check_dtype
from novoclip.optimizers.moments import (
    average,
    block_sizes,
    debiased,
    divide,
    ones_average,
    over_root,
    real_zeros,
    root_average,
    scalar,
    zeros,
)
from novoclip.optimizers.step import MASK, Step, add_decay, check_decay
from novoclip.safe_math import wide_ratio
from novoclip.typing import Granularity, Mask, Norm, ScalarOrSchedule

Start = Literal["nonzero", "first", "zero"]
Averaging = Literal["never", "always", "later"]
Order = Literal["before", "after"]
DecayPlace = Literal["moment", "decoupled"]


class NovoGradState(NamedTuple):
    """The state of NovoGrad.

    Attributes:
      mu: m, a pytree like the parameters.
      root: sqrt(v), a vector over the tensors, or whatever `per` names; v itself where that is a mean of norms.
      root_max: with amsgrad, the largest `root` so far.
      root_weight: with start="zero" and bias_correction_nu, the weight of the gradients in v, 1 - b2^t.
      mu_weight: with bias_correction_mu, the weight of the gradients in m, 1 - b1^t.
    """

    mu: Any
    root: Any
    root_max: Any = ()
    root_weight: Any = ()
    mu_weight: Any = ()


class Variant(NamedTuple):
    """The options of NovoGrad that are structure; `novograd` describes them."""

    start: Start = "nonzero"
    averaging: Averaging = "never"
    amsgrad: bool = False
    norm: Norm = "l2"
    normalize: Order = "before"
    weight_decay_mode: DecayPlace = "moment"
    bias_correction_mu: bool = False
    bias_correction_nu: bool = True

    @property
    def averages_squares(self) -> bool:
        """Whether v is a mean of squared norms, and not of norms as in apex for the largest absolute value."""
        return self.norm in ("l2", "rms")

    @property
    def corrects_root(self) -> bool:
        """Whether v is divided by the weight of the gradients in it."""
        return self.start == "zero" and bool(self.bias_correction_nu)

    @property
    def corrects_mu(self) -> bool:
        """Whether m is divided by the weight of the gradients in it, which with averaging="later" is 1."""
        return bool(self.bias_correction_mu) and self.averaging != "later"

    @property
    def shown(self) -> str:
        """The options that the state depends on, for error messages; empty for the defaults."""
        default, fields = Variant(), ("start", "amsgrad", "norm", "normalize", "bias_correction_mu")
        found = [f"{name}={getattr(self, name)!r}" for name in fields if getattr(self, name) != getattr(default, name)]
        if self.start == "zero" and not self.corrects_root:
            found.append(f"bias_correction_nu={self.bias_correction_nu}")
        return f"({', '.join(found)})" if found else ""


def novograd_algorithm(
    b1: ScalarOrSchedule,
    b2: ScalarOrSchedule,
    eps: ScalarOrSchedule,
    eps_root: ScalarOrSchedule,
    weight_decay: ScalarOrSchedule | None,
    weight_decay_mask: Mask,
    per: Granularity,
    mu_dtype: Any,
    variant: Variant,
    luc: ScalarOrSchedule | None = None,
    luc_eps: ScalarOrSchedule = 1e-8,
) -> Algorithm:
    """Return the formula; `novograd` describes the arguments."""
    _check_numbers(b1, b2, eps, eps_root, luc, luc_eps)
    check_decay(weight_decay, weight_decay_mask)
    check_dtype("mu_dtype", mu_dtype, random=True)
    _check_variant(variant, weight_decay)
    blocks, sizes = resolve_fixed(per), resolve_fixed(per, checked_norm(variant.norm))
    decoupled = variant.weight_decay_mode == "decoupled"

    def init(shapes: Any) -> NovoGradState:
        roots = real_zeros(norm_shapes(sizes, shapes))
        return NovoGradState(
            zeros(shapes, mu_dtype),
            roots,
            jax.tree.map(jnp.zeros_like, roots) if variant.amsgrad else (),
            scalar(shapes) if variant.corrects_root else (),
            scalar(shapes) if variant.corrects_mu else (),
        )

    def normalized(tree: Any, state: NovoGradState, step: Step) -> Any:
        root = state.root_max if variant.amsgrad else state.root
        if variant.corrects_root:
            # A mean of squares has the weight inside the root, and a mean of norms has it outside.
            root = (over_root if variant.averages_squares else debiased)(root, state.root_weight)
        roots, inside = sizes.spread(root, tree), step.unless_zero(eps_root, "eps_root")
        return divide(tree, roots, step.epsilon(eps, "eps"), inside)

    def learn(gradients: Any, state: NovoGradState, step: Step) -> NovoGradState:
        state = _with_roots(state, block_sizes(sizes, gradients), step, b2, variant)
        pulled = gradients if variant.normalize == "after" else normalized(gradients, state, step)
        pulled = pulled if decoupled else add_decay(pulled, step, rate=weight_decay, mask=weight_decay_mask)
        by, rest = step.decay(b1, "b1")
        if variant.averaging != "never":
            taken = jnp.where(step.number == 0, 1, rest) if variant.averaging == "later" else rest
            pulled = jax.tree.map(lambda u: taken.astype(u.dtype) * u, pulled)
        weight = ones_average(state.mu_weight, (by, rest)) if variant.corrects_mu else ()
        return state._replace(mu=jax.tree.map(lambda u, m: by * m + u, pulled, state.mu), mu_weight=weight)

    def direction(gradients: Any, state: NovoGradState, step: Step) -> Any:
        del gradients
        found = debiased(state.mu, state.mu_weight) if variant.corrects_mu else state.mu
        found = normalized(found, state, step) if variant.normalize == "after" else found
        found = found if luc is None else _times_rates(found, step, blocks, luc, luc_eps)
        if not decoupled:
            return found
        return add_decay(found, step, rate=weight_decay, mask=weight_decay_mask, scaled=luc is not None)

    name = f"novograd{variant.shown} per {sizes.name}"
    return Algorithm(init, learn, direction, name, scaled=luc is not None, masks=((MASK, weight_decay_mask),))


def _with_roots(state: NovoGradState, norms: Any, step: Step, b2: ScalarOrSchedule, variant: Variant) -> NovoGradState:
    """Return the state with the next root, its maximum and its weight."""
    decay = step.decay(b2, "b2")
    root = learned = (root_average if variant.averages_squares else average)(norms, state.root, decay)
    if variant.start == "nonzero":
        root = jax.tree.map(lambda old, new, norm: jnp.where(old > 0, new, norm), state.root, learned, norms)
    elif variant.start == "first":
        root = jax.tree.map(lambda new, norm: jnp.where(step.number == 0, norm, new), learned, norms)
    top = jax.tree.map(jnp.maximum, state.root_max, root) if variant.amsgrad else ()
    weight = ones_average(state.root_weight, decay) if variant.corrects_root else ()
    return state._replace(root=root, root_max=top, root_weight=weight)


def _times_rates(tree: Any, step: Step, blocks: Measure, luc: ScalarOrSchedule, luc_eps: ScalarOrSchedule) -> Any:
    """Return each block u of the pytree times its own learning rate min(lr, luc ||w|| / (||u|| + luc_eps))."""
    if step.params is None:
        msg = "luc needs the parameters: call update(updates, state, params)"
        raise ValueError(msg)

    def rate(of_weights: jax.Array, of_update: jax.Array) -> jax.Array:
        trust = step.value(luc, "luc").astype(of_update.dtype)
        below = of_update + step.value(luc_eps, "luc_eps").astype(of_update.dtype)
        whole = step.learning_rate.astype(of_update.dtype)
        limit = wide_ratio(trust * of_weights, jnp.where(below == 0, 1, below))
        return jnp.where(below == 0, whole, jnp.minimum(whole, limit))

    rates = jax.tree.map(rate, block_sizes(blocks, step.weights), block_sizes(blocks, tree))
    return jax.tree.map(lambda u, by: by.astype(u.dtype) * u, tree, blocks.spread(rates, tree))


def _check_numbers(b1: Any, b2: Any, eps: Any, eps_root: Any, luc: Any, luc_eps: Any) -> None:
    for name, number in (("b1", b1), ("b2", b2)):
        check_number(name, number, high=1.0)
    for name, number in (("eps", eps), ("eps_root", eps_root), ("luc_eps", luc_eps)):
        check_number(name, number)
    if luc is not None:
        if isinstance(luc, bool):
            msg = f"luc must be a trust coefficient, or None for no clipping; got {luc!r}: write luc=1e-3 for NeMo's"
            raise TypeError(msg)
        check_number("luc", luc)


def _check_variant(variant: Variant, weight_decay: Any) -> None:
    check_choice("start", variant.start, ("nonzero", "first", "zero"))
    check_choice("averaging", variant.averaging, ("never", "always", "later"))
    check_choice("normalize", variant.normalize, ("before", "after"))
    check_choice("weight_decay_mode", variant.weight_decay_mode, ("moment", "decoupled"))
    for name in ("amsgrad", "bias_correction_mu", "bias_correction_nu"):
        check_flag(name, getattr(variant, name))
    decays = weight_decay is not None and not (isinstance(weight_decay, float | int) and weight_decay == 0)
    if variant.normalize == "after" and variant.weight_decay_mode == "moment" and decays:
        msg = 'weight_decay_mode must be "decoupled" with normalize="after", where m is divided by the norm of the '
        msg += 'gradients; got "moment": write weight_decay_mode="decoupled"'
        raise ValueError(msg)
