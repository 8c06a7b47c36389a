"""The engine that all backends share: page states, accounting, reclaim, mapping."""
