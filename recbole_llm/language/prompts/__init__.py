"""How an item, a history and an instruction are put into words."""
