"""What layers without attention keep of sessions on a worker."""
