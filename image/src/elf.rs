//! The parts of ELF that building an initramfs needs: whether a program is static, and the information in a kernel
//! module.
//!
//! Only 64-bit little-endian x86 files are read. Layout: System V ABI, "Object Files", chapters 4 and 5.

use anyhow::{Context, Result, bail, ensure};

/// `e_machine` of x86-64.
const EM_X86_64: u16 = 62;
/// `p_type` of the segment that names a dynamic linker: a static program has none.
const PT_INTERP: u32 = 3;
/// `e_type` of programs, fixed and position independent.
const PROGRAM_TYPES: [u16; 2] = [2, 3];

/// Checks that `bytes` is an x86-64 program that needs no dynamic linker.
pub fn check_static_program(bytes: &[u8]) -> Result<()> {
    check_header(bytes)?;
    let kind = u16_at(bytes, 16)?;
    ensure!(PROGRAM_TYPES.contains(&kind), "it is an ELF file, but not a program (type {kind})");
    let table = usize_at(bytes, 32)?;
    let entry_size = usize::from(u16_at(bytes, 54)?);
    let count = usize::from(u16_at(bytes, 56)?);
    ensure!(count > 0, "it has no program headers");
    for index in 0..count {
        if u32_at(bytes, entry(table, entry_size, index)?)? == PT_INTERP {
            bail!("it is linked dynamically; the RAM system has no libraries, so it must be static");
        }
    }
    Ok(())
}

/// The `key=value` pairs of a kernel module's `.modinfo` section, in file order.
pub fn modinfo(bytes: &[u8]) -> Result<Vec<(String, String)>> {
    check_header(bytes)?;
    let section = section(bytes, b".modinfo")?.context("it has no section .modinfo, so it is not a kernel module")?;
    let pairs = section.split(|byte| *byte == 0).filter_map(|entry| {
        let (key, value) = std::str::from_utf8(entry).ok()?.split_once('=')?;
        Some((key.to_owned(), value.to_owned()))
    });
    Ok(pairs.collect())
}

/// The bytes of the first section called `name`.
fn section<'a>(bytes: &'a [u8], name: &[u8]) -> Result<Option<&'a [u8]>> {
    let table = usize_at(bytes, 40)?;
    let entry_size = usize::from(u16_at(bytes, 58)?);
    let count = usize::from(u16_at(bytes, 60)?);
    let names_index = usize::from(u16_at(bytes, 62)?);
    let names = section_bytes(bytes, entry(table, entry_size, names_index)?)?;
    for index in 0..count {
        let header = entry(table, entry_size, index)?;
        let name_offset = u32_at(bytes, header)? as usize;
        let this = names.get(name_offset..).and_then(|rest| rest.split(|byte| *byte == 0).next());
        if this == Some(name) {
            return section_bytes(bytes, header).map(Some);
        }
    }
    Ok(None)
}

fn section_bytes(bytes: &[u8], header: usize) -> Result<&[u8]> {
    slice(bytes, usize_at(bytes, header.saturating_add(24))?, usize_at(bytes, header.saturating_add(32))?)
}

fn check_header(bytes: &[u8]) -> Result<()> {
    ensure!(bytes.starts_with(b"\x7fELF"), "it is not an ELF file");
    ensure!(bytes.get(4..6) == Some(&[2, 1]), "it is not a 64-bit little-endian ELF file");
    let machine = u16_at(bytes, 18)?;
    ensure!(machine == EM_X86_64, "it is for another processor (ELF machine {machine}, x86-64 is {EM_X86_64})");
    Ok(())
}

fn entry(table: usize, size: usize, index: usize) -> Result<usize> {
    size.checked_mul(index).and_then(|offset| offset.checked_add(table)).context("its header table is damaged")
}

fn slice(bytes: &[u8], offset: usize, len: usize) -> Result<&[u8]> {
    let end = offset.checked_add(len).context("its header tables are damaged")?;
    bytes.get(offset..end).context("it is cut short")
}

fn array<const N: usize>(bytes: &[u8], offset: usize) -> Result<[u8; N]> {
    slice(bytes, offset, N)?.try_into().context("it is cut short")
}

fn u16_at(bytes: &[u8], offset: usize) -> Result<u16> {
    array(bytes, offset).map(u16::from_le_bytes)
}

fn u32_at(bytes: &[u8], offset: usize) -> Result<u32> {
    array(bytes, offset).map(u32::from_le_bytes)
}

fn usize_at(bytes: &[u8], offset: usize) -> Result<usize> {
    usize::try_from(u64::from_le_bytes(array(bytes, offset)?)).context("its header tables are damaged")
}

/// Small ELF files for tests here and elsewhere in this crate.
#[cfg(test)]
pub mod fixture {
    fn header(kind: u16, program_headers: u16, section_headers: u16, section_table: u64) -> Vec<u8> {
        let mut elf = vec![0; 64];
        elf[..6].copy_from_slice(b"\x7fELF\x02\x01");
        elf[16..18].copy_from_slice(&kind.to_le_bytes());
        elf[18..20].copy_from_slice(&super::EM_X86_64.to_le_bytes());
        elf[32..40].copy_from_slice(&64_u64.to_le_bytes());
        elf[40..48].copy_from_slice(&section_table.to_le_bytes());
        elf[54..56].copy_from_slice(&56_u16.to_le_bytes());
        elf[56..58].copy_from_slice(&program_headers.to_le_bytes());
        elf[58..60].copy_from_slice(&64_u16.to_le_bytes());
        elf[60..62].copy_from_slice(&section_headers.to_le_bytes());
        elf[62..64].copy_from_slice(&(section_headers.saturating_sub(1)).to_le_bytes());
        elf
    }

    /// A program with one program header of the type `segment`.
    pub fn program(segment: u32) -> Vec<u8> {
        let mut elf = header(2, 1, 0, 0);
        elf.extend(segment.to_le_bytes());
        elf.extend([0; 52]);
        elf
    }

    /// A kernel module whose `.modinfo` holds `entries`.
    pub fn module(entries: &[&str]) -> Vec<u8> {
        let modinfo: Vec<u8> = entries.iter().flat_map(|entry| entry.bytes().chain([0])).collect();
        let names = b"\0.modinfo\0.shstrtab\0";
        let table = 64 + modinfo.len() + names.len();
        let mut elf = header(1, 0, 3, table as u64);
        elf.extend(&modinfo);
        elf.extend(names);
        for (name, offset, len) in [(0_u32, 0, 0), (1, 64, modinfo.len()), (10, 64 + modinfo.len(), names.len())] {
            let mut section = [0; 64];
            section[..4].copy_from_slice(&name.to_le_bytes());
            section[24..32].copy_from_slice(&(offset as u64).to_le_bytes());
            section[32..40].copy_from_slice(&(len as u64).to_le_bytes());
            elf.extend(section);
        }
        // The kernel's signature follows the last section.
        elf.extend(b"~Module signature appended~\n");
        elf
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modinfo_is_read() {
        let module = fixture::module(&["firmware=a/b.bin", "license=GPL", "firmware=c.bin", "empty="]);
        let pair = |key: &str, value: &str| (key.to_owned(), value.to_owned());
        let expected =
            [pair("firmware", "a/b.bin"), pair("license", "GPL"), pair("firmware", "c.bin"), pair("empty", "")];
        assert_eq!(modinfo(&module).unwrap(), expected);
    }

    #[test]
    fn no_truncation_panics() {
        let module = fixture::module(&["firmware=a/b.bin"]);
        // The last section header is read up to its size, 24 bytes before its end.
        let needed = module.len() - b"~Module signature appended~\n".len() - 24;
        for len in 0..needed {
            assert!(modinfo(&module[..len]).is_err(), "{len} bytes");
        }
        modinfo(&module[..needed]).unwrap();
        let program = fixture::program(1);
        for len in 0..64 {
            assert!(check_static_program(&program[..len]).is_err(), "{len} bytes");
        }
    }

    #[test]
    fn hostile_offsets_are_errors() {
        for field in [32, 40] {
            let mut bytes = if field == 32 { fixture::program(1) } else { fixture::module(&["a=b"]) };
            bytes[field..field + 8].copy_from_slice(&u64::MAX.to_le_bytes());
            assert!(check_static_program(&bytes).is_err());
            assert!(modinfo(&bytes).is_err());
        }
    }

    #[test]
    fn static_and_dynamic_are_told_apart() {
        check_static_program(&fixture::program(1)).unwrap();
        let dynamic = check_static_program(&fixture::program(PT_INTERP)).unwrap_err().to_string();
        assert!(dynamic.contains("must be static"), "{dynamic}");
        let script = check_static_program(b"#!/bin/sh\n").unwrap_err().to_string();
        assert!(script.contains("not an ELF file"), "{script}");
        let module = check_static_program(&fixture::module(&[])).unwrap_err().to_string();
        assert!(module.contains("not a program"), "{module}");
    }
}
