"""Complete programs that use the client; README.md says how to start them."""
