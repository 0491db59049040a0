"""The figures of a run, one module a section of the page. Each function returns None where its data is missing."""
