//! Network interfaces: list them, bring them up, give them an address. The second home of unsafe code.

use std::fs;
use std::io;
use std::net::{Ipv4Addr, UdpSocket};
use std::os::fd::AsRawFd;
use std::path::Path;

use netboot::MacAddr;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NetDev {
    pub name: String,
    pub mac: MacAddr,
}

impl NetDev {
    /// Whether the cable has a link. False while the interface is down.
    pub fn has_carrier(&self) -> bool {
        read(&Path::new("/sys/class/net").join(&self.name), "carrier") == "1"
    }
}

/// Every Ethernet interface, by name.
pub fn list() -> Vec<NetDev> {
    /// `ARPHRD_ETHER`, include/uapi/linux/if_arp.h.
    const ETHERNET: &str = "1";
    let Ok(entries) = fs::read_dir("/sys/class/net") else { return Vec::new() };
    let mut devs: Vec<_> = entries
        .flatten()
        .filter(|entry| read(&entry.path(), "type") == ETHERNET)
        .filter_map(|entry| {
            let mac = read(&entry.path(), "address").parse().ok()?;
            Some(NetDev { name: entry.file_name().into_string().ok()?, mac })
        })
        .collect();
    devs.sort_by(|a, b| a.name.cmp(&b.name));
    devs
}

fn read(dir: &Path, name: &str) -> String {
    fs::read_to_string(dir.join(name)).unwrap_or_default().trim().to_owned()
}

/// Brings the interface up; the link comes later.
///
/// # Errors
/// The kernel's.
pub fn set_up(name: &str) -> io::Result<()> {
    change_flags(name, |flags| flags | libc::IFF_UP)
}

fn change_flags(name: &str, change: impl FnOnce(libc::c_int) -> libc::c_int) -> io::Result<()> {
    let socket = any_socket()?;
    let mut request = ffi::request(name)?;
    ffi::call(&socket, libc::SIOCGIFFLAGS, &mut request)?;
    ffi::change_flags(&mut request, change);
    ffi::call(&socket, libc::SIOCSIFFLAGS, &mut request)
}

/// Takes every interface down.
///
/// Before a restart this is needed: the kernel resets virtio cards while it shuts down, and one that is still up with
/// packets under way can then keep the processor in its interrupt work for good (seen with 6.1 and one processor).
pub fn set_all_down() {
    for dev in list() {
        if let Err(cause) = change_flags(&dev.name, |flags| flags & !libc::IFF_UP) {
            log::warn!("network card {} does not go down: {cause}", dev.name);
        }
    }
}

/// Gives the interface its address, and the kernel a route to its network.
///
/// # Errors
/// The kernel's.
pub fn set_address(name: &str, address: Ipv4Addr, prefix_len: u8) -> io::Result<()> {
    let socket = any_socket()?;
    let mask = u32::MAX.checked_shl(32 - u32::from(prefix_len.min(32))).unwrap_or(0);
    let mut request = ffi::request(name)?;
    ffi::put_address(&mut request, address);
    ffi::call(&socket, libc::SIOCSIFADDR, &mut request)?;
    ffi::put_address(&mut request, Ipv4Addr::from(mask));
    ffi::call(&socket, libc::SIOCSIFNETMASK, &mut request)
}

/// Sends what is for other networks to `router`. Harmless if the route is there already.
///
/// # Errors
/// The kernel's.
pub fn add_default_route(router: Ipv4Addr) -> io::Result<()> {
    match ffi::add_default_route(&any_socket()?, router) {
        Err(cause) if cause.raw_os_error() == Some(libc::EEXIST) => Ok(()),
        result => result,
    }
}

/// Any IPv4 socket will do for these ioctls.
fn any_socket() -> io::Result<UdpSocket> {
    UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))
}

/// netdevice(7): the ioctls and their structs.
mod ffi {
    use super::{AsRawFd, Ipv4Addr, UdpSocket, io};

    pub(super) fn request(name: &str) -> io::Result<libc::ifreq> {
        // SAFETY: an all-zero ifreq is valid: integers, arrays of them, and a union of those.
        let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
        if name.len() >= request.ifr_name.len() {
            return Err(io::Error::other(format!("interface name {name:?} is too long")));
        }
        for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
            *to = libc::c_char::from_ne_bytes([from]);
        }
        Ok(request)
    }

    /// The number is narrower in musl's `ioctl` than in its constants; every one used here fits.
    pub(super) fn call(socket: &UdpSocket, number: libc::c_ulong, request: &mut libc::ifreq) -> io::Result<()> {
        // SAFETY: the descriptor is open for as long as `socket` is borrowed; the requests used here read and write
        // one ifreq, which outlives the call.
        let result = unsafe { libc::ioctl(socket.as_raw_fd(), number as libc::Ioctl, std::ptr::from_mut(request)) };
        if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }

    pub(super) fn change_flags(request: &mut libc::ifreq, change: impl FnOnce(libc::c_int) -> libc::c_int) {
        // SAFETY: SIOCGIFFLAGS has just filled this member of the union; any bit pattern is a valid short.
        let old = unsafe { request.ifr_ifru.ifru_flags };
        // Flags are 16 bits here; what does not fit was not asked for.
        request.ifr_ifru.ifru_flags = libc::c_short::try_from(change(old.into())).unwrap_or(old);
    }

    pub(super) fn put_address(request: &mut libc::ifreq, address: Ipv4Addr) {
        request.ifr_ifru.ifru_addr = sockaddr(address);
    }

    pub(super) fn add_default_route(socket: &UdpSocket, router: Ipv4Addr) -> io::Result<()> {
        // SAFETY: an all-zero rtentry is valid: integers, sockaddrs, and a device name pointer that may be null.
        let mut route: libc::rtentry = unsafe { std::mem::zeroed() };
        route.rt_dst = sockaddr(Ipv4Addr::UNSPECIFIED);
        route.rt_genmask = sockaddr(Ipv4Addr::UNSPECIFIED);
        route.rt_gateway = sockaddr(router);
        route.rt_flags = libc::RTF_UP | libc::RTF_GATEWAY;
        let route = std::ptr::from_ref(&route);
        // SAFETY: the descriptor is open for as long as `socket` is borrowed; SIOCADDRT reads one rtentry, which
        // outlives the call.
        let result = unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCADDRT as libc::Ioctl, route) };
        if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }

    fn sockaddr(address: Ipv4Addr) -> libc::sockaddr {
        let [a, b, c, d] = address.octets().map(|byte| libc::c_char::from_ne_bytes([byte]));
        // struct sockaddr_in laid out in sa_data: port (2 bytes), address (4), padding (8).
        let mut sa_data = [0; 14];
        sa_data[2..6].copy_from_slice(&[a, b, c, d]);
        libc::sockaddr { sa_family: libc::sa_family_t::try_from(libc::AF_INET).expect("2"), sa_data }
    }
}
