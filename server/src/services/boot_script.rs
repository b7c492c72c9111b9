//! The texts for a machine that boots from the network: its iPXE script, and its `ezio.conf`.

use std::net::Ipv4Addr;

use netboot::MacAddr;
use order::{Options, Order};

use crate::room::orders::Job;
use crate::room::{Boot, Given, Room};

/// `ezio.conf` for one job, with the token of the machine that asks. Without one, nothing that it reports counts.
pub fn conf(room: &Room, job: &Job, token: Option<Given>, address: Ipv4Addr) -> String {
    let server = room.boot_server(address);
    let order = Order {
        torrent: format!("torrents/{}.torrent", job.image),
        image: Some(job.image.clone()),
        trackers: server.url("announce").into_iter().collect(),
        report: server.url("report"),
        boot: server.url("boot"),
        deployment: job.deployment.clone(),
        // A server without TFTP has given out no order to ask about.
        options: Options { confirm: token.is_some() && !job.options.dry_run, ..job.options.clone() },
        token: match token {
            Some(Given::Plain(token)) => token.to_string(),
            _ => String::new(),
        },
        sealed_token: match token {
            Some(Given::Sealed(sealed)) => sealed.to_string(),
            _ => String::new(),
        },
        unknown: Vec::new(),
    };
    order.to_string()
}

/// The iPXE script for one machine.
pub fn script(room: &Room, mac: MacAddr, address: Ipv4Addr) -> String {
    let job = match room.boot(mac) {
        Boot::Local(why) => return local_script(mac, why),
        Boot::Image(job) => job,
    };
    let again = again(room, mac, address);
    let usable = room.torrent(&job.image).and_then(|image| match image {
        Some(image) => job.check(&image).map_err(|error| format!("{error:#}")),
        None => Ok(()),
    });
    if let Err(error) = usable {
        return format!(
            "#!ipxe\necho EZIO: {mac} should get image {}, but it cannot be used:\necho {}\n\
             echo Repair it or run `ezio disarm` on the server. Asking again in 10 s.\nsleep 10\n{again}",
            job.image,
            plain(&error)
        );
    }
    let server = room.boot_server(address);
    let arguments = format!("initrd=initrd.img ezio.server={address} BOOTIF={} {}", mac.bootif(), job.kernel_args);
    let arguments = arguments.trim_end();
    let load = |command: &str, file: &str, rest: &str| {
        let http = server.url(&format!("boot/{file}")).map(|url| format!("{command} {url}{rest} || "));
        format!("{}{command} tftp://{address}/{file}{rest} || goto failed\n", http.unwrap_or_default())
    };
    format!(
        "#!ipxe\necho EZIO: {mac} gets image {}\n{}{}boot || goto failed\n:failed\n\
         echo EZIO: the imaging system could not be loaded from {address}. Trying again in 5 s.\nsleep 5\n\
         imgfree ||\n{again}",
        job.image,
        load("kernel", "vmlinuz", &format!(" {arguments}")),
        load("initrd", "initrd.img", ""),
    )
}

/// The script for a client that did not say who it is: it asks again, with its address.
pub fn script_for_anybody(room: &Room, address: Ipv4Addr) -> String {
    let url = room.boot_server(address).url("boot.ipxe?mac=${mac:hexhyp}&uuid=${uuid}&serial=${serial:uristring}");
    let http = url.map(|url| format!("chain --replace {url} || ")).unwrap_or_default();
    format!("#!ipxe\n{http}chain --replace tftp://{address}/boot.ipxe/01-${{mac:hexhyp}} || exit 1\n")
}

fn again(room: &Room, mac: MacAddr, address: Ipv4Addr) -> String {
    let url = room.boot_server(address).url(&format!("boot.ipxe?mac={}", mac.dashed()));
    let http = url.map(|url| format!("chain --replace {url} || ")).unwrap_or_default();
    format!("{http}chain --replace tftp://{address}/boot.ipxe/{} || exit 1\n", mac.bootif())
}

/// On UEFI `exit 1` goes on with the next boot entry; after a plain `exit` firmware opens its setup menu, as after any
/// program that ended well. On BIOS the next entry is often the network again, so the first disk is started from here.
fn local_script(mac: MacAddr, why: &str) -> String {
    format!(
        "#!ipxe\necho EZIO: {mac} boots from its own disk: {why}\niseq ${{platform}} efi && exit 1 ||\n\
         sanboot --no-describe --drive 0x80 || exit 1\n"
    )
}

/// Text that iPXE's `echo` shows as it is: no settings, no operators, one line.
fn plain(text: &str) -> String {
    text.chars().map(|c| if c.is_ascii_graphic() && !"$|&#\\\"".contains(c) { c } else { ' ' }).take(300).collect()
}
