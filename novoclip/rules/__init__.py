"""Clipping rules, one file per rule or family of rules."""
