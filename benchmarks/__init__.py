"""Comparisons and measurements, by question: see README.md."""
