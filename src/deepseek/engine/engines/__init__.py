"""Implementations of `deepseek.engine.base.Engine`."""
