"""Where kept KV lies: one protocol, one file per tier. `pool` is the first: residents of the engine's own pool."""
