"""Which rule keeps the answers at which work: full prefill and every rule on the same items, paired."""
