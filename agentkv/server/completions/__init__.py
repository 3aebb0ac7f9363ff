"""`/v1/completions`: a text or tokens, continued without a chat template."""
