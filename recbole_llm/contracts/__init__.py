"""Interfaces that all layers share: cases, models and their descriptions.

Nothing of the package is imported here, except the error for users.
"""
