"""The methods of managers and transactions, one ``def`` for each unit of ``records``."""
