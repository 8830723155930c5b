"""The data as RecBole's own models take it: datasets and loaders."""
