"""A peer that means no good: hostile.py MISDEED TORRENT TRACKER.

Finds everybody at the tracker, and keeps a connection to each of them on which it misbehaves until it is killed:
`lies` answers with wrong bytes, `stalls` with nothing, `floods` asks for everything again and again and reads nothing,
`garbage` sends noise, and `claims` hangs up when it is asked for one of the pieces it said it has.
"""

import hashlib
import os
import socket
import struct
import sys
import threading
import time
import urllib.parse
import urllib.request

misdeed, torrent, tracker = sys.argv[1:]
BLOCK = 16384


def end_of(data, at):
    """The offset behind the bencoded value at `at`."""
    if data[at:at + 1] == b"i":
        return data.index(b"e", at) + 1
    if data[at:at + 1] in (b"l", b"d"):
        at += 1
        while data[at:at + 1] != b"e":
            at = end_of(data, at)
        return at + 1
    colon = data.index(b":", at)
    return colon + 1 + int(data[at:colon])


def value_of(data, key):
    """The bencoded value of a key of the bencoded dictionary `data`."""
    at = 1
    while data[at:at + 1] != b"e":
        middle = end_of(data, at)
        after = end_of(data, middle)
        if data[at:middle].split(b":", 1)[1] == key:
            return data[middle:after]
        at = after
    raise KeyError(key)


info = value_of(open(torrent, "rb").read(), b"info")
infohash = hashlib.sha1(info).digest()
piece_count = len(value_of(info, b"pieces").split(b":", 1)[1]) // 20
peer_id = f"-XX0000-{misdeed:<12}".encode()[:20]


def message(number, payload=b""):
    return struct.pack(">IB", len(payload) + 1, number) + payload


def serve(link):
    """Claims everything, lets everybody ask, and answers in its own way."""
    bits = bytearray(b"\xff" * ((piece_count + 7) // 8))
    if piece_count % 8:
        bits[-1] = 0xff << (8 - piece_count % 8) & 0xff
    link.sendall(message(5, bytes(bits)) + message(1))
    read = link.makefile("rb")
    while True:
        length = struct.unpack(">I", read.read(4))[0]
        body = read.read(length)
        if body[:1] != b"\x06":
            continue
        if misdeed == "claims":
            return
        if misdeed == "lies":
            piece, begin, length = struct.unpack(">III", body[1:])
            link.sendall(message(7, struct.pack(">II", piece, begin) + b"B" * length))


def flood(link):
    link.sendall(message(2))
    while True:
        link.sendall(b"".join(message(6, struct.pack(">III", piece, 0, BLOCK)) for piece in range(piece_count)))
        time.sleep(0.01)


def misbehave(address):
    while True:
        try:
            with socket.create_connection(address, timeout=5) as link:
                link.settimeout(None)
                link.sendall(b"\x13BitTorrent protocol" + bytes(8) + infohash + peer_id)
                link.recv(68, socket.MSG_WAITALL)
                if misdeed == "garbage":
                    link.sendall(os.urandom(5000))
                elif misdeed == "floods":
                    flood(link)
                else:
                    serve(link)
        except (OSError, struct.error):
            pass
        time.sleep(0.2)


def peers():
    query = {"info_hash": infohash, "peer_id": peer_id, "port": 9, "uploaded": 0, "downloaded": 0, "left": 1}
    query.update(compact=1, numwant=200)
    with urllib.request.urlopen(tracker + "?" + urllib.parse.urlencode(query), timeout=5) as reply:
        packed = value_of(reply.read(), b"peers").split(b":", 1)[1]
    for at in range(0, len(packed), 6):
        yield socket.inet_ntoa(packed[at:at + 4]), struct.unpack(">H", packed[at + 4:at + 6])[0]


known = set()
while True:
    try:
        for found in peers():
            if found not in known and found[1] != 9:
                known.add(found)
                threading.Thread(target=misbehave, args=(found,), daemon=True).start()
    except (OSError, KeyError):
        pass
    time.sleep(0.5)
