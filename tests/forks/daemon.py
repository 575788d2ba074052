"""What is started instead of one of Ray's daemons that are Python: has the process of `workers.py` fork it, and lives as long."""

import json
import os
import socket
import sys

connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 18)
connection.connect(os.environ["UNIFY_TEST_FORKS"])
request = {
    "arguments": sys.argv[1:],
    "environment": dict(os.environ),
    "folder": os.getcwd(),
    "nice": os.nice(0),
    "daemon_of": os.getpid(),
}
socket.send_fds(connection, [json.dumps(request).encode()], [0, 1, 2])
if not connection.recv(32):
    sys.exit("no daemon was forked")
connection.recv(32)  # until the daemon ends, which holds the other end
