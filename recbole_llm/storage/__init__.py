"""Files that a crash cannot damage: run folders, caches and logs; and output on the screen."""
