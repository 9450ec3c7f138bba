"""The C++ kernels of the CPU: sources, build and loading. See docs/decisions/0004."""
