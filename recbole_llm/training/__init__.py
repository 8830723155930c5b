"""Losses, optimizers, corpora, and the loop that trains a model and reads it back."""
