"""Weights on the disk: the released layout, and how its keys become transformers'."""
