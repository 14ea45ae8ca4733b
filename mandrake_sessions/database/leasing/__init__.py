"""The exclusive use of a connection: the queue, the leased connection, the writer."""
