//! What an older version has left is read: samples written by the version of commit c9e5dec, in `testdata/c9e5dec`.

use std::path::{Path, PathBuf};

use library::Library;
use netboot::MacAddr;
use order::{After, Grow};
use report::Stage;

use crate::room::book;
use crate::room::config::Settings;
use crate::room::history;
use crate::room::orders::Armed;
use crate::room::running::ServerNote;
use crate::room::state;

const WRITTEN: MacAddr = MacAddr([0x52, 0x54, 0, 0, 0, 5]);
const HELD_BACK: MacAddr = MacAddr([0x52, 0x54, 0, 0, 0, 4]);
const NEVER: MacAddr = MacAddr([0x52, 0x54, 0, 0, 0, 3]);
const IN_GROUP: MacAddr = MacAddr([0x52, 0x54, 0, 0, 0, 2]);
const OTHER: MacAddr = MacAddr([0x52, 0x54, 0, 0, 0, 1]);

fn dir() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/c9e5dec")
}

#[test]
fn orders_config_and_machines_mean_what_they_meant() {
    let copy = tempfile::tempdir().expect("a directory");
    let state_dir = copy.path().to_owned();
    for entry in std::fs::read_dir(dir().join("state")).expect("samples") {
        let path = entry.expect("an entry").path();
        std::fs::copy(&path, state_dir.join(path.file_name().expect("a name"))).expect("copied");
    }
    let settings = Settings::load(Some(&dir().join("ezio.toml")), Settings::default()).expect("read");
    let armed = book::read(&state_dir).expect("read");
    assert_eq!(armed.suspended(), None);
    let job = |mac| armed.job_for(mac, &settings);

    let room = job(OTHER).expect("armed");
    assert_eq!((room.image.as_str(), room.deployment.as_str()), ("tiny", armed.orders()[0].deployment.as_str()));
    let options = room.options;
    assert_eq!((options.target.to_string(), options.after, options.linger), ("serial=X1".into(), After::Halt, 3));
    assert_eq!((options.dry_run, options.grow, options.keep), (true, Grow::Last, false));
    assert!(options.verify && options.discard && !options.new_ids);

    let own = job(WRITTEN).expect("armed");
    assert_eq!(own.options.target.to_string(), "bus=nvme,min=1M", "the config's");
    assert_eq!((own.options.after, own.options.linger, own.options.dry_run), (After::Poweroff, 7, false));
    assert_eq!((job(HELD_BACK), job(NEVER)), (None, None));
    let group = job(IN_GROUP).expect("armed");
    assert_eq!(
        (group.kernel_args.as_str(), group.options.target.to_string().as_str()),
        ("console=ttyS0", "bus=nvme,min=1M")
    );

    assert!(!state_dir.join("armed.json").exists() && state_dir.join("armed.json.taken-over").exists());
    let fleet = history::load(&book::open(&state_dir).expect("opens")).expect("read");
    assert!(fleet.is_done(WRITTEN, &own), "it is not imaged again");
    let machine = fleet.machines().next().expect("one");
    let report = machine.report.as_ref().expect("it reported");
    assert_eq!((report.stage, report.times[0].stage), (Stage::Done, Stage::Network));

    let note: ServerNote = state::read(&state_dir.join("serve.json")).expect("read").expect("there");
    assert_eq!(note.url, "http://10.9.0.1:8080");
    let told = note.settings().expect("it says");
    assert_eq!((told.target, told.after), (settings.target, settings.after));
}

#[test]
fn images_are_read() {
    let library = Library::open(dir()).expect("a library");
    let image = library.image("tiny").expect("sound");
    assert_eq!(image.manifest.infohash, "93c805633d6470f361d23bcd09a888c4f2638b34");
    assert_eq!((image.manifest.partitions.len(), image.layout.extents().len()), (1, 2));
    assert_eq!(image.manifest.account, None, "it had none");
}

/// A state directory as the older version left it, after `lose`.
fn taken_over(lose: impl FnOnce(&Path)) -> (tempfile::TempDir, anyhow::Result<Armed>) {
    let copy = tempfile::tempdir().expect("a directory");
    for name in ["armed.json", "fleet.json"] {
        std::fs::copy(dir().join("state").join(name), copy.path().join(name)).expect("copied");
    }
    lose(copy.path());
    let armed = book::read(copy.path());
    (copy, armed)
}

#[test]
fn what_was_lost_before_the_upgrade_is_suspended() {
    let cut = |name: &'static str| {
        move |dir: &Path| {
            let bytes = std::fs::read(dir.join(name)).expect("read");
            std::fs::write(dir.join(name), &bytes[..bytes.len() / 2]).expect("written");
        }
    };
    type Lose<'a> = &'a dyn Fn(&Path);
    let lose: [(&str, Lose<'_>); 4] = [
        ("fleet.json is gone", &|dir| std::fs::remove_file(dir.join("fleet.json")).expect("removed")),
        ("fleet.json is damaged", &cut("fleet.json")),
        ("fleet.json is damaged", &|dir| std::fs::write(dir.join("fleet.json"), "").expect("written")),
        ("armed.json is damaged", &cut("armed.json")),
    ];
    for (words, lose) in lose {
        let (dir, armed) = taken_over(lose);
        let armed = armed.expect("taken over");
        assert!(armed.suspended().is_some_and(|why| why.contains(words)), "{words}: {:?}", armed.suspended());
        assert_eq!(book::read(dir.path()).expect("read").suspended(), armed.suspended(), "until a person says so");
    }
    // A link to itself fails as a bad sector does. Nothing is taken over, and nothing is lost.
    let (dir, armed) = taken_over(|dir| {
        std::fs::remove_file(dir.join("fleet.json")).expect("removed");
        std::os::unix::fs::symlink("fleet.json", dir.join("fleet.json")).expect("linked");
    });
    let error = format!("{:#}", armed.expect_err("not to be read"));
    assert!(error.contains("reading the record of finished machines"), "{error}");
    std::fs::remove_file(dir.path().join("fleet.json")).expect("removed");
    std::fs::copy(self::dir().join("state/fleet.json"), dir.path().join("fleet.json")).expect("mended");
    assert_eq!(book::read(dir.path()).expect("read").suspended(), None);
}
