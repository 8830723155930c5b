"""From texts to token ids, and token ids in batches."""
