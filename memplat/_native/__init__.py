"""The compiled core. Optional: ``memplat._core`` finds out whether it is there, ``memplat.engine.hot`` uses it."""
