//! Runs cases, each in a separate process and separate namespaces, and prints the results.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use crate::cases::{CASES, Case};
use crate::faults;
use crate::golden_debian;
use crate::paths::{Paths, check_host};
use crate::process::{POLL, Process};
use crate::rack::Rack;
use crate::sandbox;

/// A case that takes longer than this hangs. It is several times the limit of a single wait, whose error shows better
/// what was missing. The longest case needs ten minutes on two busy cores.
const CASE_DEADLINE: Duration = Duration::from_secs(2 * 60 * 60);

/// A file in the folder of a case that has passed, until the case is run again.
const PASSED: &str = "passed";

struct Running {
    case: &'static Case,
    folder: PathBuf,
    process: Process,
    started: Instant,
}

/// Runs every case whose name contains `filter`, `jobs` at a time. Returns whether all passed; the last line says so
/// too.
///
/// # Errors
/// If no case has such a name, or the host lacks something.
pub fn test(filter: &str, jobs: usize) -> Result<bool> {
    let paths = Paths::new();
    check_host(&paths)?;
    let mut waiting: Vec<&'static Case> = CASES.iter().filter(|case| case.name.contains(filter)).collect();
    ensure!(!waiting.is_empty(), "no case has {filter:?} in its name; `rack list` shows them");
    let _lock = only_run(&paths, "test")?;
    if waiting.iter().any(|case| case.name == "debian_installation") {
        // Its packages come over the network, which no case has.
        golden_debian::make(&paths).context("installing a Debian")?;
    }
    waiting.reverse();
    let (mut passed, mut failed) = (0, 0);
    let mut running: Vec<Running> = Vec::new();
    let began = Instant::now();
    while !waiting.is_empty() || !running.is_empty() {
        while running.len() < jobs.max(1)
            && let Some(case) = waiting.pop()
        {
            running.push(start(&paths, case)?);
        }
        let mut still = Vec::new();
        for mut one in running {
            match ended(&mut one)? {
                None => still.push(one),
                Some(true) => passed += 1,
                Some(false) => failed += 1,
            }
        }
        running = still;
        std::thread::sleep(POLL);
    }
    println!("{} s in all", began.elapsed().as_secs());
    let has_passed = |case: &Case| paths.racks.join(case.name).join(PASSED).exists();
    if failed == 0 && CASES.iter().all(has_passed) {
        let folders = CASES.iter().map(|case| paths.racks.join(case.name));
        match faults::check_table(folders, &paths.racks.join("faults.md"), &paths.docs.join("faults.md")) {
            Ok(()) => passed += 1,
            Err(error) => {
                println!("docs/faults.md: {error:#}");
                failed += 1;
            }
        }
    }
    println!("{passed} passed, {failed} failed");
    Ok(failed == 0)
}

/// Runs one case in this process, which [`test`] started in a sandbox.
///
/// # Errors
/// The error of the case, after the last lines of every log.
pub fn inside(name: &str) -> Result<()> {
    let case = CASES.iter().find(|case| case.name == name).with_context(|| format!("no case is named {name}"))?;
    let mut rack = Rack::new()?;
    let result = (case.run)(&mut rack);
    if result.is_err() {
        println!("{}", Rack::tails(40));
    }
    result
}

/// Keeps a second run out of the folders of this one, as long as the file is open.
///
/// # Errors
/// If there is another run.
pub fn only_run(paths: &Paths, what: &str) -> Result<fs::File> {
    fs::create_dir_all(&paths.racks).with_context(|| format!("creating {}", paths.racks.display()))?;
    let path = paths.racks.join(format!(".{what}.lock"));
    let lock = fs::File::create(&path).with_context(|| format!("creating {}", path.display()))?;
    match lock.try_lock() {
        Ok(()) => Ok(lock),
        Err(fs::TryLockError::WouldBlock) => bail!(
            "another `rack {what}` is running in {}: wait for it, or name another folder with EZIO_RACKS",
            paths.racks.display()
        ),
        Err(fs::TryLockError::Error(cause)) => Err(cause).with_context(|| format!("locking {}", path.display())),
    }
}

/// An empty folder for logs; earlier contents are deleted.
///
/// # Errors
/// If it cannot be emptied.
pub fn fresh_folder(paths: &Paths, name: &str) -> Result<PathBuf> {
    let folder = paths.racks.join(name);
    if folder.exists() {
        fs::remove_dir_all(&folder).with_context(|| format!("emptying {}", folder.display()))?;
    }
    fs::create_dir_all(&folder).with_context(|| format!("creating {}", folder.display()))?;
    Ok(folder)
}

/// Removes the disks: they take most of a folder's space and are of little use after success.
pub fn remove_disks(folder: &Path) {
    for bulk in ["disks", "library"] {
        let _ = fs::remove_dir_all(folder.join(bulk));
    }
}

fn start(paths: &Paths, case: &'static Case) -> Result<Running> {
    let folder = fresh_folder(paths, case.name)?;
    let command: Command = sandbox::command(&["inside", case.name], &folder, paths)?;
    let process = Process::start(case.name, command, &folder.join("case.log"))?;
    Ok(Running { case, folder, process, started: Instant::now() })
}

/// Once the case has ended, prints and returns whether it passed.
fn ended(one: &mut Running) -> Result<Option<bool>> {
    let seconds = one.started.elapsed().as_secs();
    let name = one.case.name;
    let status = match one.process.exited()? {
        Some(status) => Some(status),
        None if one.started.elapsed() < CASE_DEADLINE => return Ok(None),
        None => None,
    };
    if status.is_some_and(|status| status.success()) {
        let text = fs::read_to_string(one.folder.join("case.log")).unwrap_or_default();
        println!("case {name} ... ok ({seconds} s)");
        text.lines().for_each(|line| println!("    {line}"));
        remove_disks(&one.folder);
        fs::write(one.folder.join(PASSED), "").with_context(|| format!("noting that {name} has passed"))?;
        return Ok(Some(true));
    }
    let text = fs::read_to_string(one.folder.join("case.log")).unwrap_or_default();
    println!("case {name} ... FAILED ({seconds} s)");
    match status {
        Some(_) => text.lines().for_each(|line| println!("    {line}")),
        None => println!("    has not ended within {} s and was killed", CASE_DEADLINE.as_secs()),
    }
    println!("    logs: {}", one.folder.display());
    one.process.kill();
    Ok(Some(false))
}
