"""Several runs beside each other: on more and more rows, or with other values of a field."""
