"""The measures of the benchmark `engine_cpu`; `benchmarks/engine_cpu.py` runs them.

`peers/` holds scripts that run in the peers' own environments and import nothing of this project.
"""
