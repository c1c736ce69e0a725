"""Training one rank's share of a run: torch only, no Spark, no MLflow."""
