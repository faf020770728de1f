"""A name or a folder → a model that answers."""
