"""Fully connected conditional random fields: pure functions of arrays."""
