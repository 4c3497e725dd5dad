"""Wrappers that take any rule."""
