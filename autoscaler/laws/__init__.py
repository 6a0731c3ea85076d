"""The pure decision laws of other autoscalers, emulated exactly: for the yardsticks and for the portfolio alike."""
