"""The measure of the benchmark `prefix_reuse`; `benchmarks/prefix_reuse.py` runs it.

`replay` and `vllm_rule` also run in vLLM's environment and import nothing else of this project.
"""
