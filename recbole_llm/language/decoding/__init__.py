"""Continuations of many prompts at once: sampled, searched, or one token read."""
