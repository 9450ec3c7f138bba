"""The shared vocabulary: requests, wire messages, settings base, errors. Imports no other room."""
