"""The built-in backends, each a plugin of its own, and the defaults for all hooks (:mod:`memplat.backends.default`)."""
