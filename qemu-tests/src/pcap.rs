//! Records the important packets of an interface into a pcap file: everything except the middle of TCP connections,
//! which is the image itself. (tcpdump cannot do this: it insists on changing its groups, which a user namespace
//! forbids.)

use std::fs::File;
use std::io::Write;
use std::mem::MaybeUninit;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};

use socket2::{Domain, Protocol, SockAddr, SockAddrStorage, SockFilter, Socket, Type};

/// Bytes kept of a packet: a DHCP message is shorter, and for bulk TFTP the start is enough.
const SNAP_LEN: u32 = 600;
/// <https://www.tcpdump.org/linktypes.html>
const LINKTYPE_ETHERNET: u32 = 1;

/// Starts recording, until the process ends.
///
/// # Errors
/// If there is no such interface, or the file cannot be made.
pub fn record(interface: &str, path: &Path) -> Result<()> {
    let index = nix::net::if_::if_nametoindex(interface).with_context(|| format!("finding {interface}"))?;
    let protocol = Protocol::from(libc::ETH_P_ALL.to_be() >> 16);
    let socket = Socket::new(Domain::PACKET, Type::RAW, Some(protocol)).context("opening a packet socket")?;
    socket.attach_filter(&FILTER).context("attaching the filter")?;
    socket.bind(&link_address(i32::try_from(index)?)).context("binding to the interface")?;
    let mut file = File::create(path).with_context(|| format!("creating {}", path.display()))?;
    file.write_all(&file_header()).context("writing the pcap header")?;
    std::thread::spawn(move || {
        let mut buffer = [const { MaybeUninit::<u8>::uninit() }; SNAP_LEN as usize];
        while let Ok((len, _)) = socket.recv_from(&mut buffer) {
            // SAFETY: the kernel has just written the first `len` bytes.
            let packet: Vec<u8> = buffer[..len].iter().map(|byte| unsafe { byte.assume_init() }).collect();
            if file.write_all(&record_of(&packet)).is_err() {
                // The disk is full; the case will report it.
                return;
            }
        }
    });
    Ok(())
}

fn link_address(index: i32) -> SockAddr {
    let address = libc::sockaddr_ll {
        sll_family: libc::AF_PACKET as u16,
        sll_protocol: (libc::ETH_P_ALL as u16).to_be(),
        sll_ifindex: index,
        sll_hatype: 0,
        sll_pkttype: 0,
        sll_halen: 0,
        sll_addr: [0; 8],
    };
    let mut storage = SockAddrStorage::zeroed();
    // SAFETY: a storage is large enough for every kind of socket address, including packet(7)'s, and may be read as any
    // of them.
    unsafe {
        *storage.view_as::<libc::sockaddr_ll>() = address;
        SockAddr::new(storage, size_of::<libc::sockaddr_ll>() as libc::socklen_t)
    }
}

fn file_header() -> Vec<u8> {
    let mut header = Vec::new();
    header.extend(0xa1b2_c3d4_u32.to_ne_bytes());
    header.extend([2_u16.to_ne_bytes(), 4_u16.to_ne_bytes()].concat());
    [0, 0, SNAP_LEN, LINKTYPE_ETHERNET].iter().for_each(|field| header.extend(field.to_ne_bytes()));
    header
}

fn record_of(packet: &[u8]) -> Vec<u8> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let len = u32::try_from(packet.len()).unwrap_or(SNAP_LEN);
    // The format's seconds have 32 bits, which suffice until 2106.
    let fields = [now.as_secs() as u32, now.subsec_micros(), len, len];
    let mut record: Vec<u8> = fields.iter().flat_map(|field| field.to_ne_bytes()).collect();
    record.extend_from_slice(packet);
    record
}

const fn op(code: u32, jt: u8, jf: u8, k: u32) -> SockFilter {
    SockFilter::new(code as u16, jt, jf, k)
}

/// `not tcp or tcp[tcpflags] & (tcp-fin|tcp-syn|tcp-rst) != 0`, in the kernel, so that bulk traffic costs nothing here.
static FILTER: [SockFilter; 11] = [
    op(libc::BPF_LD | libc::BPF_H | libc::BPF_ABS, 0, 0, 12),
    op(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, 0, 7, 0x0800),
    op(libc::BPF_LD | libc::BPF_B | libc::BPF_ABS, 0, 0, 23),
    op(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, 0, 5, 6),
    op(libc::BPF_LD | libc::BPF_H | libc::BPF_ABS, 0, 0, 20),
    op(libc::BPF_JMP | libc::BPF_JSET | libc::BPF_K, 4, 0, 0x1fff),
    op(libc::BPF_LDX | libc::BPF_B | libc::BPF_MSH, 0, 0, 14),
    op(libc::BPF_LD | libc::BPF_B | libc::BPF_IND, 0, 0, 27),
    op(libc::BPF_JMP | libc::BPF_JSET | libc::BPF_K, 0, 1, 7),
    op(libc::BPF_RET | libc::BPF_K, 0, 0, SNAP_LEN),
    op(libc::BPF_RET | libc::BPF_K, 0, 0, 0),
];
