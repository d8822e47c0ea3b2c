"""Plain torch networks written from the papers' tables alone, to be compared with segjax.models.

They share no code with segjax and no layout: NCHW, torch's padding, the released files' names.
"""
