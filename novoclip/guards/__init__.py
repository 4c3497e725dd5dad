"""Guards around an optimizer: steps that are skipped, and what is known of them."""
