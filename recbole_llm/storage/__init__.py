"""Files that a crash cannot damage: run folders, caches, logs; and what is shown on the screen."""
