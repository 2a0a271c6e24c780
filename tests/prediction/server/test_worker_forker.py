"""The forker: frames go through a byte stream as they are."""

from __future__ import annotations

import socket
import threading

from splitsec.prediction.server.worker_forker import receive_frames, send_frames


def test_frames_come_out_of_the_stream_as_they_went_in() -> None:
    here, there = socket.socketpair()
    frames = [b"", b"x", bytes(1 << 20), b"end"]
    with here, there:
        thread = threading.Thread(target=send_frames, args=(here, frames))
        thread.start()
        assert receive_frames(there) == frames
        thread.join()
        send_frames(here, [])
        assert receive_frames(there) == []


def test_a_stream_that_ends_in_the_middle_gives_no_frames() -> None:
    here, there = socket.socketpair()
    with there:
        with here:
            here.sendall(b"\1" + bytes(7) + b"\5" + bytes(7) + b"abc")
        assert receive_frames(there) == []
