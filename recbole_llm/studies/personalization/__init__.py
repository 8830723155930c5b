"""The personalization spectrum: one model for all, an adapter for each cohort, an adapter for each user (UMass x Spotify, 2024)."""
