"""Model + data → checkpoint: recipes, tuning, schedule, loss, trainer, runs."""
