"""The run directory, the MLflow run that mirrors it, and the model that comes out."""
