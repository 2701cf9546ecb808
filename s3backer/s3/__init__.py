"""S3 over HTTP: where it is, who we are, what is sent, what comes back, what it costs."""
