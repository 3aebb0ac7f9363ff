"""Who may speak: both ends prove that they know the group's secret, and nobody else can read along (CurveZMQ).

Both key pairs come from the secret. The driver's public key is never sent, and a handshake needs it, so that who does
not know the secret gets no further.
"""

from dataclasses import dataclass
from hashlib import blake2b

import zmq
from zmq.utils import z85


@dataclass(frozen=True, slots=True)
class GroupKeys:
    """Keys of a driver and its stages, in ZeroMQ's text form."""

    driver_public: bytes
    driver_secret: bytes
    stage_public: bytes
    stage_secret: bytes

    @classmethod
    def of(cls, secret: bytes) -> "GroupKeys":
        """The keys of a secret."""
        pairs = []
        for who in (b"driver", b"stage"):
            private = z85.encode(blake2b(secret, digest_size=32, person=who).digest())
            pairs += [zmq.curve_public(private), private]
        return cls(*pairs)

    def as_driver(self, socket: zmq.Socket[bytes]) -> None:
        """Let a socket of the driver take stages."""
        socket.curve_server = True
        socket.curve_publickey, socket.curve_secretkey = self.driver_public, self.driver_secret

    def as_stage(self, socket: zmq.Socket[bytes]) -> None:
        """Let a socket of a stage reach the driver."""
        socket.curve_serverkey = self.driver_public
        socket.curve_publickey, socket.curve_secretkey = self.stage_public, self.stage_secret
