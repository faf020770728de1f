"""Pictures and pages: each function returns a matplotlib figure or an HTML string. Imported only to show something."""
