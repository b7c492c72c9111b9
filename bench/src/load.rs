//! What a server holds: the real `ezio serve` in a namespace, and many machines, or a hostile one, that ask it at once.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::{Args, ValueEnum};
use nix::sys::resource::{Resource, getrlimit, setrlimit};

use crate::load::lan::Lan;
use crate::load::served::Bench;
use crate::load::table::Table;
use crate::process::sh;

mod client;
mod dhcp;
mod hostile;
mod idle;
mod image;
mod lan;
mod meter;
mod reports;
mod served;
mod stages;
mod table;
mod tftp;

/// What is to be measured.
#[derive(Args, Clone, Debug)]
pub struct LoadOptions {
    /// Only these; may be given several times.
    #[arg(long = "only", value_enum)]
    only: Vec<Subject>,
    /// How often the room boots alone and beside the hostile card, in turns; medians are shown.
    #[arg(long, default_value_t = 3)]
    runs: usize,
    /// Our program; if not given, EZIO_BIN or the one that was built last.
    #[arg(long)]
    ezio: Option<PathBuf>,
    /// Where the tables go; the library is made there too, and deleted. It has to be on a disk, because what the server
    /// writes to memory is not counted.
    #[arg(long, default_value = "build/bench")]
    out: PathBuf,
    /// Where the tables go besides, such as docs/load.md.
    #[arg(long)]
    document: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Subject {
    Dhcp,
    Tftp,
    Reports,
    Idle,
    Hostile,
    Stages,
}

impl Subject {
    fn measure(self, bench: &Bench) -> Table {
        match self {
            Subject::Dhcp => dhcp::measure(bench),
            Subject::Tftp => tftp::measure(bench),
            Subject::Reports => reports::measure(bench),
            Subject::Idle => idle::measure(bench),
            Subject::Hostile => hostile::measure(bench),
            Subject::Stages => stages::measure(bench),
        }
    }
}

/// Measures everything that is asked for, and writes the tables to `load.md`.
///
/// # Errors
/// If the server's program is missing, or the network cannot be made. What goes wrong with one row is said in that row.
pub fn run(options: &LoadOptions) -> Result<ExitCode> {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).context("reading the limit on open files")?;
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard).context("raising the limit on open files")?;
    let dir = options.out.join("load.tmp");
    if dir.exists() {
        fs::remove_dir_all(&dir).with_context(|| format!("emptying {}", dir.display()))?;
    }
    fs::create_dir_all(&dir).with_context(|| format!("making {}", dir.display()))?;
    let dir = fs::canonicalize(&dir).with_context(|| format!("looking for {}", dir.display()))?;
    let bench = Bench { ezio: program(options)?, lan: Lan::new()?, runs: options.runs.max(1), dir };
    image::make_boot_dir(&bench.dir)?;
    let all = [Subject::Dhcp, Subject::Tftp, Subject::Reports, Subject::Idle, Subject::Hostile, Subject::Stages];
    let wanted = all.into_iter().filter(|subject| options.only.is_empty() || options.only.contains(subject));
    let tables: Vec<Table> = wanted.map(|subject| subject.measure(&bench)).collect();
    let text = document(&bench.ezio, &tables)?;
    for path in [Some(options.out.join("load.md")), options.document.clone()].into_iter().flatten() {
        fs::write(&path, &text).with_context(|| format!("writing {}", path.display()))?;
    }
    println!("\n{text}");
    // Logs of the servers are of use only if something went wrong.
    let is_sound = tables.iter().flat_map(|table| &table.rows).flatten().all(|cell| !cell.starts_with("not measured"));
    if is_sound {
        fs::remove_dir_all(&bench.dir).with_context(|| format!("removing {}", bench.dir.display()))?;
    } else {
        println!("what the servers said is in {}", bench.dir.display());
    }
    Ok(if is_sound { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn program(options: &LoadOptions) -> Result<PathBuf> {
    let named = options.ezio.clone().or_else(|| std::env::var_os("EZIO_BIN").map(PathBuf::from));
    let path = match named {
        Some(path) => path,
        None => {
            let built = ["release", "quick", "debug"].map(|profile| Path::new("target").join(profile).join("ezio"));
            let age = |path: &PathBuf| fs::metadata(path).and_then(|facts| facts.modified()).ok();
            let newest = built.into_iter().filter(|path| age(path).is_some()).max_by_key(age);
            newest.context("no target/*/ezio: build the package `server` first, or name the program with --ezio")?
        }
    };
    fs::canonicalize(&path).with_context(|| format!("looking for {}: build the package `server` first", path.display()))
}

fn document(ezio: &Path, tables: &[Table]) -> Result<String> {
    let field = |path: &str, key: &str| -> Option<String> {
        let text = fs::read_to_string(path).ok()?;
        let line = text.lines().find(|line| line.starts_with(key))?;
        Some(line.split_once(':')?.1.trim().to_owned())
    };
    let cpu = field("/proc/cpuinfo", "model name").unwrap_or_else(|| "unknown processor".into());
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let memory = field("/proc/meminfo", "MemTotal").unwrap_or_default();
    let memory_kib: u64 = memory.trim_end_matches(" kB").parse().unwrap_or(0);
    // target/PROFILE/ezio
    let profile = ezio.parent().and_then(Path::file_name).map(|name| name.to_string_lossy().into_owned());
    let mut text = format!(
        "# Measured: what a server holds\n\n\
         `make load` measures this on any machine and writes this file. It starts `ezio serve` on a bridge in a network \
         namespace, with a small image and an order for every machine. The machines are on the other side of virtual cables, \
         each with its own card. Server and machines share this computer's processors: *CPU* says how many of its cores the \
         server and the machines kept busy, and how busy the whole computer was. Above 90 % the computer is the limit, and a real \
         room with its own processors would see a faster server.\n\n\
         Measured on {} with Linux {}, {cores} × {cpu}, {:.0} GiB of memory; profile `{}` of the server.\n",
        sh("date +%F")?.trim(),
        sh("uname -r")?.trim(),
        memory_kib as f64 / f64::from(1 << 20),
        profile.unwrap_or_default(),
    );
    for table in tables {
        text.push('\n');
        text += &table.markdown();
    }
    Ok(text)
}
