"""How a step is computed: several GPUs, compiled and recomputed layers, a tower on the host."""
