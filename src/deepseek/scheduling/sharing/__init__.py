"""How several models share one device: who steps next, and how long a step may be."""
