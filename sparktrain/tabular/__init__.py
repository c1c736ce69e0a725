"""A model for rows of columns: a network made to fit the features, and the Task that trains it."""
