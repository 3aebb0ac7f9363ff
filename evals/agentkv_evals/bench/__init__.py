"""Benchmarks of the engine: random weights of real shapes, both arms in one run."""
