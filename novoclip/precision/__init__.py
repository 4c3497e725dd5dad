"""Training in 16 bits: float32 weights in the state, stochastic rounding, and scaled losses."""
