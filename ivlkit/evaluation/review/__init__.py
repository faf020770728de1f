"""Rows whose truth may be wrong: which to look at, and a copy of their table with what was decided."""
