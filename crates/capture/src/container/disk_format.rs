//! Formats of disk images, by their marks.

/// The kind of disk image that starts with `head` and has `foot` as its last 512 bytes, named as in `qemu-img`.
pub(crate) fn disk_format(head: &[u8], foot: &[u8]) -> Option<&'static str> {
    let at_start: &[(&[u8], &str)] = &[
        (b"QFI\xfb\0\0\0\x01", "qcow"),
        (b"QFI\xfb", "qcow2"),
        (b"KDMV", "vmdk"),
        (b"COWD", "vmdk"),
        (b"# Disk DescriptorFile", "vmdk"),
        (b"vhdxfile", "vhdx"),
        (b"conectix", "vpc"),
        (b"QED\0", "qed"),
        (b"WithoutFreeSpace", "parallels"),
        (b"WithouFreSpacExt", "parallels"),
    ];
    let found = at_start.iter().find(|(magic, _)| head.starts_with(magic)).map(|&(_, format)| format);
    let is_vdi = head.get(0x40..0x44) == Some(&[0x7f, 0x10, 0xda, 0xbe]);
    let is_fixed_vhd = foot.starts_with(b"conectix");
    found.or(is_vdi.then_some("vdi")).or(is_fixed_vhd.then_some("vpc"))
}
