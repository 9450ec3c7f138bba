"""The HTTP edge: OpenAI-compatible routes over deployments. HTTP lives here and nowhere else."""
