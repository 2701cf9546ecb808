"""What ties s3backer to the machine it runs on: mount(8), systemd, man pages and completions."""
