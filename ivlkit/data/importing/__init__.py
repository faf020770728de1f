"""Tables, folders, rows of other formats → released rows."""
