"""The measures of the benchmark `engine_checks`: each a module with one function `measure(run)`.

They speak to a real worker process in token ids, without HTTP.
"""
