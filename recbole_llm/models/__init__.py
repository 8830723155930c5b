"""One file per model: what its paper adds."""
