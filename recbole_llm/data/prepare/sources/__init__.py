"""The public datasets and a user's own tables, a module each."""
