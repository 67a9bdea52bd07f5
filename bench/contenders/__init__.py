"""Who is timed, one file a library. A new file here, or a plugin, needs nothing else but ``register`` (see ``registry``)."""
