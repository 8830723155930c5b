"""One run: what it is, its checks, training and evaluation, and tables of several."""
