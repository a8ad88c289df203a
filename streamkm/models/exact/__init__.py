"""The exact algorithm: Lloyd's iterations with bounds, in memory and out of core."""
