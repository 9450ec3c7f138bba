"""Decoder families, single-device; which class serves which architecture is in `registry`."""
