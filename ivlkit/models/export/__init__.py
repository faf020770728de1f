"""A model → a folder for others, proven."""
