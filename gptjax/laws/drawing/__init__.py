"""The report of a law and its figures, on a page, in files and in a notebook."""
