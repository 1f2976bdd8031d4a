"""A study's results for other programs: tables.py (what the tables hold), parquet.py (as files), tracking.py (MLflow)."""
