"""What devices tell of themselves, one module per kind of device."""
