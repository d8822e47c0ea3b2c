"""Scoring a network on a split, and searching the CRF that suits it."""
