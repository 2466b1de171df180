"""The bounded buffer of waiting events, and its settings. No code here awaits, reads a clock or does I/O."""
