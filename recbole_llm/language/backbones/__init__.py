"""Language models by name, folder or size, with adapters and precision."""
