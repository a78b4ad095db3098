"""A worker whose parser does what the page says: what hostile pages do to real parsers."""

import ctypes
import os
import re
import signal
import socket
import sys
import time

from stages.crawl import source, workers
from stages.crawl.page import Page, UnreadableError

CPU_S = 1.0
"""What the tests let a page take."""


def parse(_, address, body):
    match body.data.decode().split():
        case ["spin"]:
            while True:
                pass
        case ["spin", "briefly"]:
            until = time.process_time() + 2 * CPU_S
            while time.process_time() < until:
                pass
        case ["reserve"]:
            bytearray(2**30)  # above the limit, and touched by nobody
        case ["regex"]:
            re.match("(a|a)*b", "a" * 60)
        case ["sleep"]:
            time.sleep(3600)
        case ["allocate"]:
            return [Page(address, "", "x" * len(bytearray(4 * 2**30)))]
        case ["allocate", "slowly"]:
            held = []
            while True:
                held.append(bytearray(2**20))
        case ["segv"]:
            ctypes.string_at(0)
        case ["abort"]:
            os.abort()
        case ["kill"]:
            os.kill(os.getpid(), signal.SIGKILL)
        case ["exit"]:
            os._exit(0)
        case ["recurse"]:
            return parse(_, address, body)
        case ["raise"]:
            raise IndexError("the library's own fault")
        case ["print"]:
            print("[not an answer]", flush=True)
            os.write(1, b"\xff\xff\xff\xff")
        case ["flood"]:
            return [Page(address, "", "x" * 2**21)]
        case ["connect"]:
            socket.create_connection(("127.0.0.1", 9))
        case ["unreadable"]:
            raise UnreadableError("not_html", "said so")
    return [Page(address, "", body.data.decode(), (), None)]


if __name__ == "__main__":
    source.parse = parse
    match sys.argv[1:]:  # a defect, which the tests are to see
        case ["unlimited"]:
            workers._limit = lambda *_: None
        case ["outgoing"]:
            workers._stay_inside = lambda *_: None
    workers.main()
    sys.exit()
