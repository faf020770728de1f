"""The architecture: modules, attention, quantised weights."""
