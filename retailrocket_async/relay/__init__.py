"""Forwards events that services of any language publish to a broker; see the documentation's page on the relay."""

from retailrocket_async.relay._source import DeadLetter, DeadLetters, Lag, Message, Source

__all__ = ["DeadLetter", "DeadLetters", "Lag", "Message", "Source"]
