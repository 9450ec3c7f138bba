"""Runs the policies of a worker on recorded arrivals, with a virtual clock: an hour in seconds.

`simulator` is the loop, `step_times` says what steps take (fitted to a real engine's record),
`outcome` what became of the requests, `capacity` how much load is full load.
"""
