//! Ten thousand generated tables are read here and by `partx`, which shows what libblkid reads. Where the two differ, a
//! named decision has to explain it, or the test fails. `scripts/setup` installs util-linux.
//!
//! `model` reads a table a third time, with one switch for each decision. With all switches off, its result must equal
//! ours; with all switches on, it must equal partx's. The decisions that count for a table are those whose switch
//! changes its result. No other difference explains anything.

#[path = "as_linux/disk.rs"]
mod disk;
#[path = "as_linux/generate.rs"]
mod generate;
#[path = "as_linux/model.rs"]
mod model;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};

use layout::parttable::{Table, TableError};

use disk::Disk;
use model::{Decision, Decisions};

const TABLES: u64 = 10_000;
const THREADS: usize = 2;

/// Number, start and length in sectors of 512 bytes.
type Row = (u32, u64, u64);

/// The result for one table.
struct Compared {
    kind: &'static str,
    reasons: BTreeSet<&'static str>,
}

#[test]
fn tables_are_read_as_linux_reads_them() {
    let next = AtomicU64::new(0);
    let dir = tempfile::tempdir().expect("temporary directory");
    let program = partx_path();
    let (next, dir, program) = (&next, dir.path(), program.as_path());
    let work = move |thread: usize| {
        let file = dir.join(format!("disk-{thread}"));
        let mut found = Vec::new();
        loop {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= TABLES {
                return found;
            }
            found.push(compare(seed, program, &file));
        }
    };
    let found: Vec<Result<Compared, String>> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..THREADS).map(|thread| scope.spawn(move || work(thread))).collect();
        threads.into_iter().flat_map(|thread| thread.join().expect("no panic")).collect()
    });
    let (good, failed): (Vec<_>, Vec<_>) = found.into_iter().partition(Result::is_ok);
    for failure in failed.iter().take(5) {
        println!("{}", failure.as_ref().err().map_or("", String::as_str));
    }
    assert!(failed.is_empty(), "{} of {TABLES} tables are read in another way, and nothing says why", failed.len());

    let good: Vec<Compared> = good.into_iter().filter_map(Result::ok).collect();
    let (mut kinds, mut reasons) = (BTreeMap::<_, (u32, u32)>::new(), BTreeMap::<_, u32>::new());
    for one in &good {
        let counts = kinds.entry(one.kind).or_default();
        counts.0 += 1;
        counts.1 += u32::from(one.reasons.is_empty());
        one.reasons.iter().for_each(|reason| *reasons.entry(*reason).or_default() += 1);
    }
    let equal = good.iter().filter(|one| one.reasons.is_empty()).count();
    println!("{TABLES} tables: {equal} equal, {} different by decision:", good.len() - equal);
    reasons.iter().for_each(|(reason, count)| println!("{count:6}  {reason}"));
    for (kind, (all, equal)) in kinds {
        println!("{kind}: {equal} of {all} equal");
    }
    let never: Vec<_> = Decision::ALL.iter().filter(|one| !reasons.contains_key(one.reason())).collect();
    assert!(never.is_empty(), "decisions that no table asked for: {never:?}");
    assert!(equal >= 5000, "most tables are nothing to decide about");
}

/// Reads table `seed` in all three ways.
fn compare(seed: u64, program: &Path, file: &Path) -> Result<Compared, String> {
    let case = generate::case(seed);
    case.disk.write_to(file);
    let theirs = partx(program, file, case.disk.sector_size);
    let (ours, said) = ours(&case.disk);
    let model = |decisions| model::read(&case.disk, decisions);
    let (as_we, as_they) = (model(Decisions::NONE), model(Decisions::ALL));
    let fail = |why: &str| {
        Err(format!(
            "table {seed} ({}, {}-byte sectors, {} bytes): {why}\n  ours   {ours:?} {said}\n  model  {as_we:?}\n  theirs {theirs:?}\n  \
             model  {as_they:?}\n{}",
            case.kind,
            case.disk.sector_size,
            case.disk.len,
            case.disk.hex()
        ))
    };
    if as_they.as_ref() != Some(&theirs) {
        return fail("libblkid reads it in a way that is not known here");
    }
    if as_we != ours {
        return fail("we read it in a way that is not meant");
    }
    let mut reasons = BTreeSet::new();
    if ours.as_ref() != Some(&theirs) {
        for decision in Decision::ALL {
            let counts =
                model(Decisions::NONE.with(decision)) != as_we || model(Decisions::ALL.without(decision)) != as_they;
            if counts {
                reasons.insert(decision.reason());
            }
        }
        if reasons.is_empty() {
            return fail("no decision explains the difference");
        }
    }
    Ok(Compared { kind: case.kind, reasons })
}

/// The partitions as we read them, or `None` and the error if we refuse the table.
fn ours(disk: &Disk) -> (Option<Vec<Row>>, String) {
    let sector_size = u32::try_from(disk.sector_size).expect("small");
    match Table::read(&mut disk.reader(), disk.len, sector_size) {
        Ok(table) => {
            let rows = table.partitions.iter().map(|one| (one.number, one.start / 512, one.len / 512)).collect();
            (Some(rows), table.warnings.join("; "))
        }
        Err(TableError::Read { at, source }) => panic!("byte {at} of a disk in memory: {source}"),
        Err(error) => (None, error.to_string()),
    }
}

/// The partitions as libblkid reads them; none if it finds no table.
fn partx(program: &Path, disk: &Path, sector_size: u64) -> Vec<Row> {
    let output = Command::new(program)
        .args(["--raw", "--noheadings", "--output", "NR,START,SECTORS", "--sector-size", &sector_size.to_string()])
        .arg(disk)
        .stderr(Stdio::null())
        .output()
        .expect("partx");
    assert!(matches!(output.status.code(), Some(0 | 1)), "{:?}", output.status);
    let row = |line: &str| -> Row {
        let mut columns = line.split_whitespace().map(|column| column.parse::<u64>().expect("a number"));
        let mut column = || columns.next().expect("three columns");
        (u32::try_from(column()).expect("small"), column(), column())
    };
    String::from_utf8_lossy(&output.stdout).lines().map(row).collect()
}

/// The path of partx: searching it ten thousand times takes longer than running it.
fn partx_path() -> PathBuf {
    let path = format!("{}:/usr/sbin:/sbin", std::env::var("PATH").unwrap_or_default());
    let found = std::env::split_paths(&path).map(|dir| dir.join("partx")).find(|program| program.is_file());
    found.expect("partx, of util-linux; run scripts/setup")
}
