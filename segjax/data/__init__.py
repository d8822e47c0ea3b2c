"""Data sets: preparing, checking and feeding them."""
