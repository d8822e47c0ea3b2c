"""TFDS builders that prepare a data set into ArrayRecord without TensorFlow."""
