"""Layers of YAML files, the rules of every setting, and what makes two runs the same."""
