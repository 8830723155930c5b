"""The synthetic pet shop: its generator, its words, and where its files lie."""
