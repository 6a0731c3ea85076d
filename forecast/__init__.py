"""GUESS THE WORK: histories, forecasters and their calibration."""
