"""Checkpoint + data → numbers and examples."""
