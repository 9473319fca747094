"""The commands, a module per group; each checks its extras, reads, calls its stage and writes."""
