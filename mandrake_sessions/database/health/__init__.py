"""What is wrong with a database: an open one in use, or any file, looked at from outside."""
