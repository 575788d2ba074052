"""What raylet starts instead of Ray's setup_worker.py: hands over to the process of `workers.py`, without any slow import."""

import json
import os
import socket
import sys

connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 18)
connection.connect(os.environ["UNIFY_TEST_FORKS"])
request = {"arguments": sys.argv[1:], "environment": dict(os.environ), "folder": os.getcwd(), "nice": os.nice(0)}
socket.send_fds(connection, [json.dumps(request).encode()], [0, 1, 2])
sys.exit(0 if connection.recv(32) else "no worker was forked")
