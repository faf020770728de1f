"""What is wrong with a data set, row by row, and what mends it."""
