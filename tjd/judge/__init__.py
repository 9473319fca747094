"""Specialist judges: their prompt, training, batched scoring and saving."""
