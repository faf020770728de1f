"""Model + data → checkpoint: recipes, tuning, schedule, loss, loop, runs."""
