"""Statistics of every unit of a vision network over a whole dataset, in one streaming pass."""
