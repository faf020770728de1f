"""Files of rows → a data set: index, mixture."""
