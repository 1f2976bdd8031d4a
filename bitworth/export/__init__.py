"""A study for other programs: its tables (tables), as Parquet files (parquet), as runs in MLflow (tracking)."""
