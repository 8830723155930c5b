"""From texts to items."""
