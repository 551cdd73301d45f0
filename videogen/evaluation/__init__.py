"""Protocols: a metric with everything that decides its value."""
