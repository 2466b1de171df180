"""Servers and helpers that several acceptance runs use."""
