"""The metrics: each a function on arrays and a declaration of what it means."""
