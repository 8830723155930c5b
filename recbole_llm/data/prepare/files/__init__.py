"""Raw files: how they are fetched, unpacked and read."""
