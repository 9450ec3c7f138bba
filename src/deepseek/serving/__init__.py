"""Deployments and the life of a request between the edge and a worker; loads no torch."""
