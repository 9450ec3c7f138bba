"""Which precision a request is computed in, where a model has several: policy and load shedding."""
