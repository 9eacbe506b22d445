"""A name server for tests: answers every question for an IPv4 address with a list that can change."""

import socket
import struct
import threading

TYPE_A = 1
FIXED_HEADER = 12


class NameServer:
    """Serves UDP on a free port of this machine until it is closed."""

    def __init__(self, *addresses: str) -> None:
        self.addresses = list(addresses)
        self.questions = 0
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.bind(("127.0.0.1", 0))
        self.port: int = self._socket.getsockname()[1]
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def close(self) -> None:
        # A datagram to itself wakes the thread from its wait.
        self._socket.sendto(b"", ("127.0.0.1", self.port))
        self._thread.join()
        self._socket.close()

    def _serve(self) -> None:
        while True:
            query, sender = self._socket.recvfrom(4096)
            if not query:
                return
            self._socket.sendto(self._answer(query), sender)

    def _answer(self, query: bytes) -> bytes:
        # RFC 1035, 4.1: header, the question as it came, then the answers.
        end = query.index(b"\0", FIXED_HEADER) + 5
        question = query[FIXED_HEADER:end]
        (kind,) = struct.unpack("!H", question[-4:-2])
        addresses = self.addresses if kind == TYPE_A else []
        self.questions += kind == TYPE_A
        header = query[:2] + struct.pack("!HHHHH", 0x8180, 1, len(addresses), 0, 0)
        answers = b"".join(
            # A pointer to the name in the question, type, class, seconds to live, length, address.
            struct.pack("!HHHIH", 0xC00C, TYPE_A, 1, 0, 4) + socket.inet_aton(address)
            for address in addresses
        )
        return header + question + answers
