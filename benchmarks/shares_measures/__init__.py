"""Measures of the benchmark `shares`: who gets how much of one device, from its step record."""
