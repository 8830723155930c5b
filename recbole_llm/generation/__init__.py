"""Texts of a causal LM for many prompts at once."""
