"""The same prompts under several ways of reuse, side by side: what they cost and how far their logits are apart."""
