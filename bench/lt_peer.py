"""One libtorrent peer tuned for a LAN of friends: lt_peer.py seed|super|fetch TORRENT DIRECTORY.

Prints `ready` once it could start, waits for a line on standard input, prints `complete` when every piece is there, and
goes on seeding until it is killed.
"""

import sys

import libtorrent as lt

role, torrent, directory = sys.argv[1:]

settings = {
    "listen_interfaces": "0.0.0.0:6881",
    # Nobody else is on this network.
    "enable_dht": False,
    "enable_lsd": False,
    "enable_upnp": False,
    "enable_natpmp": False,
    "enable_ip_notifier": False,
    "out_enc_policy": int(lt.enc_policy.disabled),
    "in_enc_policy": int(lt.enc_policy.disabled),
    "allow_multiple_connections_per_ip": True,
    "ssrf_mitigation": False,
    # TCP only: uTP yields to everything else, and its mixing limits TCP.
    "enable_outgoing_utp": False,
    "enable_incoming_utp": False,
    "mixed_mode_algorithm": 0,
    "rate_limit_ip_overhead": False,
    # Connect to everybody at once, and soon again.
    "connections_limit": 500,
    "connection_speed": 500,
    "torrent_connect_boost": 200,
    "smooth_connects": False,
    "min_reconnect_time": 1,
    "peer_connect_timeout": 3,
    "peer_turnover": 0,
    "min_announce_interval": 5,
    # Serve many; no tit-for-tat to speak of among so many slots.
    "unchoke_slots_limit": 16,
    "unchoke_interval": 2,
    "optimistic_unchoke_interval": 4,
    "num_optimistic_unchoke_slots": 2,
    # A LAN's round trip is short, its links are fast.
    "request_queue_time": 1,
    "max_out_request_queue": 1000,
    "max_allowed_in_request_queue": 4000,
    "send_buffer_watermark": 4 << 20,
    "send_buffer_watermark_factor": 150,
    "max_queued_disk_bytes": 64 << 20,
    "request_timeout": 10,
    "piece_timeout": 5,
    # Rarest first from the first piece.
    "initial_picker_threshold": 0,
    "auto_sequential": False,
    "hashing_threads": 2,
    "alert_mask": int(lt.alert.category_t.status_notification) | int(lt.alert.category_t.error_notification),
}

session = lt.session(settings)
params = lt.add_torrent_params()
params.ti = lt.torrent_info(torrent)
params.save_path = directory
flags = lt.torrent_flags
params.flags &= ~(flags.auto_managed | flags.paused)
params.max_uploads = -1
params.max_connections = 500
if role in ("seed", "super"):
    params.flags |= flags.seed_mode
if role == "super":
    params.flags |= flags.super_seeding

print("ready", flush=True)
sys.stdin.readline()
session.add_torrent(params)

while True:
    session.wait_for_alert(1000)
    for alert in session.pop_alerts():
        if isinstance(alert, lt.torrent_finished_alert):
            print("complete", flush=True)
        elif alert.category() & lt.alert.category_t.error_notification:
            print(alert.message(), flush=True)
