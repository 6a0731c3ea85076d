"""TALK METRICS: what engines and exporters print, and what HPA and KEDA read."""
