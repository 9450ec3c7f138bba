"""Pure decisions from snapshots: no clock, no socket, no tensor."""
