"""One file, one stage; stages meet in tables."""
