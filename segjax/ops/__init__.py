"""Pure functions of arrays in NHWC layout."""
