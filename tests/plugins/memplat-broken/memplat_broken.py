"""Fails when it is imported, as a plugin does whose dependency is gone."""

raise RuntimeError("the library that this plugin needs is gone")
