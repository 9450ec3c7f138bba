"""One device worker: several models, one step loop. Imported inside the worker process only."""
