"""Which rows of reused KV to recompute, and whether reuse is worth it."""
