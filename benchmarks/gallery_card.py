"""What a card of the gallery holds beyond the catalog and the docstring."""

from typing import NamedTuple


class Card(NamedTuple):
    """The words of one card.

    Attributes:
      line: what one writes, an expression of `novoclip`, `optax` and `jnp`.
      avoid: ends the sentence "Avoid it when".
      use: ends the sentence "Use it when"; empty for entries whose words are in `novoclip.commands.use_when`.
      run: the expression of the transform in the picture; empty for that of `line`.
      weight: the parameter, of one element, of the run in the picture.
      seen: one more sentence on what is in the picture; empty for none.
      unseen: why there is no picture; empty if there is one.
    """

    line: str
    avoid: str
    use: str = ""
    run: str = ""
    weight: float = 1.0
    seen: str = ""
    unseen: str = ""
