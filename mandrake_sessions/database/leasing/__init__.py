"""Who uses a connection next: the queue, the leased connection, the writer."""
