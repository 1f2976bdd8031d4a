"""The paper's published tables (arXiv 2411.02355v4) as package data."""
