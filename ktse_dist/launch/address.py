"""The cluster that RAY_ADDRESS names, if it does: left over from one that is gone, it is a common mistake."""

import os
import socket

from ktse_dist.errors import UserError

ANSWER_SECONDS = 10.0


def joins_cluster() -> bool:
    """Whether there is a RAY_ADDRESS. UserError where nothing listens there: Ray itself would try for many minutes."""
    address = os.environ.get("RAY_ADDRESS", "")
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if host and port.isdigit():  # else a word of Ray's, such as auto
        try:
            socket.create_connection((host.strip("[]"), int(port)), ANSWER_SECONDS).close()
        except (OSError, OverflowError) as error:
            raise UserError(
                f"RAY_ADDRESS: nothing answers at {address} ({error}); start the cluster there, or unset it to use "
                "this machine alone"
            ) from None
    return bool(address)
