"""One public rule, optimizer or wrapper, as tests and documentation see it."""

from collections.abc import Callable
from typing import Any, NamedTuple

import optax


class Entry(NamedTuple):
    """One public rule, optimizer or wrapper.

    Attributes:
      make: the public function.
      kind: "clip" for a rule that bounds what it passes on; "record" for one that passes everything on; "transform" for
        one that does something else to gradients or updates; "optimizer", also for the direction of an optimizer;
        "wrapper" for what takes any of them.
      shape: what becomes of a block beyond its limit, by default if there is `shape=`.
      per: the granularities that `per=` takes; a single one if the function has no `per=`.
      clips: the blocks that are scaled, if these are not the blocks that `per` names.
      norm: the norm that is measured, if there is no `norm=`.
      place: what it is given in a training step: "gradients", "updates" (after the optimizer and its learning rate),
        the "optimizer" to wrap, the gradients of all "examples", or a device's "shards" of them.
      needs_params: whether `update` needs the parameters.
      of_spikes: how much of a sudden gradient may pass, as in `novoclip.testing.Subject`.
      examples: sets of arguments that the contract is run with. With the first, gradients of order 1 are clipped.
    """

    make: Callable[..., optax.GradientTransformationExtraArgs]
    kind: str
    shape: str
    per: tuple[str, ...]
    examples: tuple[dict[str, Any], ...]
    clips: str | None = None
    norm: str = "l2"
    place: str = "gradients"
    needs_params: bool = False
    of_spikes: float = 0.1

    @property
    def name(self) -> str:
        """The function's name."""
        return self.make.__name__
