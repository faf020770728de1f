"""Where a person works by hand: pictures are labelled and rows are written, in the notebook."""
