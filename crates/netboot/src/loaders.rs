//! The files that machines boot from: one list for DHCP, TFTP, HTTP and the boot directory.

/// iPXE for BIOS (PXE architecture 0), on the firmware's own network driver.
pub const BIOS: &str = "undionly.kpxe";
/// iPXE for UEFI on x86-64 (PXE architectures 7, 9 and 16), on the firmware's own network driver.
pub const UEFI_X64: &str = "snponly.efi";
/// All loaders.
pub const LOADERS: [&str; 2] = [BIOS, UEFI_X64];
/// The kernel.
pub const KERNEL: &str = "vmlinuz";
/// The initramfs.
pub const INITRAMFS: &str = "initrd.img";
/// Format of a boot directory's `manifest.json`. From 2 on, its initramfs gives back the token of an order in its reports.
pub const BOOT_SCHEMA: u64 = 2;
/// Everything that a boot directory has for machines.
pub const BOOT_FILES: [&str; 4] = [BIOS, UEFI_X64, KERNEL, INITRAMFS];
