"""What a case and a model are. Imports nothing of the package."""
