"""Which byte comes next? A language model on the sources of Python's standard library."""
