"""What operators see of the platform: metrics. Imports `core` only."""
