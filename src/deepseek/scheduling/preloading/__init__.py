"""Which model's weights are where: what to load before anyone asks, and what to give up.

`base` is the interface, `preloader` the rules that every policy keeps, `rankings` what a model in a
tier is worth, `demand` which model is asked for next (`next_use`: when each is), `policies` the
combinations that have a name. `token_bucket` says how fast preloading may be, `retry` when a
refused request is worth sending again. `simulation` replays arrivals over any policy.
"""
