//! The boot directory.

/// Files of the boot directory that are handed out.
pub const BOOT_FILES: [&str; 4] = ["undionly.kpxe", "snponly.efi", "vmlinuz", "initrd.img"];
