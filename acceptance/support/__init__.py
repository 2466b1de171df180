"""Servers and records that several acceptance runs share."""
