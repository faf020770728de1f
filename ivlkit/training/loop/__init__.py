"""Rows → steps → a checkpoint."""
