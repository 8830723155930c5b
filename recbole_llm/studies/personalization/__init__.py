"""The personalization spectrum: one model for all, adapters for cohorts, adapters for users.

The method and the numbers of the models are those of UMass x Spotify (2024).
"""
