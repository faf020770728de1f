"""Memory, minutes and disk of a run, before it begins."""
