"""Frozen public networks, read from their own files."""
