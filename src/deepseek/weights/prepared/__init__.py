"""Prepared weights: models as their layers compute with them, in files that are mapped.

What is in a file is the engine's affair (`deepseek.engine.preparing`); here is what names a file,
how it is written whole or not at all, checked, found again, and thrown away.
"""
