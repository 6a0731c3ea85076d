"""KNOW THE REPLICA: what one replica carries, how long its birth takes, where replicas live."""
