"""Powers of two that keep sums of squares within the range of numbers."""

from typing import NamedTuple


class Range(NamedTuple):
    """Powers of two by which numbers are multiplied, exactly, before they are squared.

    The usual one leaves the sum of squares in range for norms from 2e-24 to 1e6 (float64:
    1e-265 to 5e33): exactly zero blocks are common, and must not cost a second pass.
    """

    usual: float
    for_large: float
    for_small: float
    small: float  # a sum of squares below which some may have been lost
    far: float  # quotients above this, or below its inverse, are multiplied in two steps
    shift: float  # the first of them, or its inverse


RANGES = {
    32: Range(2.0**44, 2.0**-65, 2.0**100, 2.0**-70, 2.0**120, 2.0**100),
    64: Range(2.0**400, 2.0**-520, 2.0**1000, 2.0**-960, 2.0**960, 2.0**900),
}
