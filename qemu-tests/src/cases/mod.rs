//! The cases. Each is one function of a screen or less.

mod chain;
mod disks;
mod hardware;
mod hostile;
mod lab;
mod larger;
mod memory;
mod orders;
mod resume;
mod stamp;
mod swarm;
mod truth;

use anyhow::Result;

use crate::rack::Rack;

pub struct Case {
    /// Its name, also used for its folder.
    pub name: &'static str,
    /// What it shows, in one line.
    pub what: &'static str,
    pub run: fn(&mut Rack) -> Result<()>,
}

const fn case(name: &'static str, what: &'static str, run: fn(&mut Rack) -> Result<()>) -> Case {
    Case { name, what, run }
}

/// All cases. The basic ones come first, then the long ones, so that two parallel jobs end at about the same time.
pub const CASES: &[Case] = &[
    case("golden_disk_starts", "the golden disk itself, in BIOS and UEFI", chain::golden_disk_starts),
    case("smallest_memory", "1 GiB clones an image larger than that; the smallest that works", memory::smallest_memory),
    case("many_places", "the smallest machine takes an image of as many places as there may be", memory::many_places),
    case(
        "debian_installation",
        "a Debian with ESP, ext4, swap and btrfs, to its login prompt",
        chain::debian_installation,
    ),
    case("power_cuts", "ten power cuts at random moments, each survived", resume::power_cuts),
    case("changed_image", "an image that changed a little costs a little", resume::changed_image),
    case("nothing_armed_uefi", "a machine starts its own disk while nothing is armed", chain::nothing_armed_uefi),
    case("late_machine", "one powered on two minutes after the others", swarm::late_machine),
    case("killed_machine", "one loses power mid-way, the others finish and start", swarm::killed_machine),
    case("server_killed", "the server is killed mid-way and started again", swarm::server_killed),
    case("cable_pulled", "a network cable is out for a while mid-way", swarm::cable_pulled),
    case("seeder_gone", "the server does not return, one machine has everything", swarm::seeder_gone),
    case("dhcp_gone", "the DHCP server is switched off mid-way", swarm::dhcp_gone),
    case("small_machines", "the least memory by BIOS and UEFI, cloud and generic kernel", memory::small_machines),
    case("proxy_dhcp_bios", "beside a site's dnsmasq, BIOS", chain::proxy_dhcp_bios),
    case("proxy_dhcp_uefi", "beside a site's dnsmasq, UEFI", chain::proxy_dhcp_uefi),
    case("leftover_file_bios", "the site's DHCP still names a boot file, BIOS", chain::leftover_file_bios),
    case("leftover_file_uefi", "the site's DHCP still names a boot file, UEFI", chain::leftover_file_uefi),
    case("one_file_name_bios", "a router that names undionly.kpxe for everybody", chain::one_file_name_bios),
    case("one_file_name_uefi", "a router that names snponly.efi for everybody", chain::one_file_name_uefi),
    case("dhcp_server_bios", "imaged, restarted, and started from its own disk, BIOS", chain::dhcp_server_bios),
    case("dhcp_server_uefi", "imaged, restarted, and started from its own disk, UEFI", chain::dhcp_server_uefi),
    case("nothing_armed_bios", "a machine starts its own disk while nothing is armed", chain::nothing_armed_bios),
    case("mbr_with_logical_partitions", "an MBR disk from capture to boot", chain::mbr_with_logical_partitions),
    case("generic_kernel", "the generic kernel with an AHCI disk and an e1000e card", hardware::generic_kernel),
    case("hostile_torrents", "refused before the disk is touched", hostile::hostile_torrents),
    case("no_dhcp_answer", "says so, and continues when a server comes", orders::no_dhcp_answer),
    case("no_tftp_answer", "says so, and continues when a server comes", orders::no_tftp_answer),
    case("no_conf", "says that nothing is armed, and continues when it is", orders::no_conf),
    case("no_disk", "refused, with the reason", disks::no_disk),
    case("two_disks", "refused without a rule, restored with one", disks::two_disks),
    case("bad_disks", "EIO, lost writes: said on the machine and the server, the others finish", truth::bad_disks),
    case("damaged_on_the_server", "the machine says what does not come, and why", truth::damaged_on_the_server),
    case("bad_memory_of_a_peer", "what it sends is found out and not written", truth::bad_memory_of_a_peer),
    case("proof_costs_little", "reading back, beside not doing it", truth::proof_costs_little),
    case("resumed", "a power cut half-way costs what was on its way", resume::resumed),
    case("server_forgets", "a finished disk is not written to, whatever the server forgot", stamp::server_forgets),
    case("larger_disk", "the table fits, a partition and its ext4 grow", larger::larger_disk),
    case("usb_disk_first", "a forgotten stick is not taken", disks::usb_disk_first),
    case("dry_run", "machines say what they would do", disks::dry_run),
    case("wrong_serial", "refused, with the reason", disks::wrong_serial),
    case("one_sector_short", "refused, with the reason", disks::one_sector_short),
    case("disk_too_small", "refused, with the reason", disks::disk_too_small),
    case("other_sector_size", "512 and 4096 bytes are not mixed, equal ones work", disks::other_sector_size),
];

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::CASES;

    #[test]
    fn names_are_unique() {
        let names: HashSet<_> = CASES.iter().map(|case| case.name).collect();
        assert_eq!(names.len(), CASES.len());
    }
}
