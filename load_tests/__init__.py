"""MAKE A WORLD: traces, arrivals, the plant, the simulator and its reports."""
