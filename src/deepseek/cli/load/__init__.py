"""A load generator for OpenAI-compatible servers: plans requests, sends them, reports."""
