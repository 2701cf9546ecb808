"""The control socket: how a command talks to the daemon that serves a volume on this host.

sockets    where daemons listen, and who may use that; connecting, and the sockets of the dead
messages   the lines that both sides send
asking     the side of the commands: which daemon of a volume is asked, and what it answers
server     the daemon's side: it runs commands and answers
"""
