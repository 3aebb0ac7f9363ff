"""Many conversations of several agents at once: what serving them takes in full, exact and screened."""
