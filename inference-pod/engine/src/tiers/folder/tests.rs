//! What the folder keeps, finds again, and gives up.

use std::time::Duration;

use super::*;

const BLOCK_BYTES: u64 = 64;

struct Bench {
    dir: tempfile::TempDir,
    options: DiskOptions,
    counters: Arc<TierCounters>,
}

impl Bench {
    fn new(blocks: u64) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let bytes = blocks * file_bytes(BLOCK_BYTES);
        let options = DiskOptions { path: dir.path().to_owned(), bytes, fingerprint: [1; 32] };
        Self { dir, options, counters: Arc::default() }
    }

    fn open(&self) -> Option<Folder> {
        let contents = Contents::new(&self.options);
        Folder::open(&self.options, &contents, BLOCK_BYTES, &self.counters).unwrap()
    }

    fn files(&self) -> Vec<PathBuf> {
        let all = std::fs::read_dir(self.dir.path()).unwrap().map(|entry| entry.unwrap().path());
        let mut files: Vec<_> = all.filter(|path| path.to_str().unwrap().ends_with(SUFFIX)).collect();
        files.sort();
        files
    }
}

fn hash(number: u8) -> BlockHash {
    BlockHash([number; 32])
}

fn bytes(number: u8) -> Vec<u8> {
    vec![number; BLOCK_BYTES as usize]
}

fn write(folder: &mut Folder, numbers: impl IntoIterator<Item = u8>) {
    for number in numbers {
        assert!(folder.write(&hash(number), None, &bytes(number)));
    }
}

/// Takes every field of every event in, as a process's log does: what is only worked out for a log runs here too.
struct Reader;

impl tracing::Subscriber for Reader {
    fn enabled(&self, _: &tracing::Metadata<'_>) -> bool {
        true
    }

    fn new_span(&self, _: &tracing::span::Attributes<'_>) -> tracing::span::Id {
        tracing::span::Id::from_u64(1)
    }

    fn record(&self, _: &tracing::span::Id, _: &tracing::span::Record<'_>) {}

    fn record_follows_from(&self, _: &tracing::span::Id, _: &tracing::span::Id) {}

    fn event(&self, event: &tracing::Event<'_>) {
        event.record(&mut |_: &tracing::field::Field, value: &dyn std::fmt::Debug| {
            drop(format!("{value:?}"));
        });
    }

    fn enter(&self, _: &tracing::span::Id) {}

    fn exit(&self, _: &tracing::span::Id) {}
}

#[test]
fn a_log_that_is_read_stops_nothing() {
    let (done, finished) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let bench = Bench::new(3);
        tracing::subscriber::with_default(Reader, || {
            let mut folder = bench.open().unwrap();
            write(&mut folder, [1, 2]);
            std::fs::write(&bench.files()[0], b"broken").unwrap();
            assert_eq!([1, 2].iter().filter(|number| folder.read(&hash(**number)).is_some()).count(), 1);
        });
        let _ = done.send(());
    });
    finished.recv_timeout(Duration::from_secs(30)).expect("it waits for itself");
}

#[test]
fn a_restart_finds_what_was_written_and_sweeps_up() {
    let bench = Bench::new(10);
    let mut folder = bench.open().unwrap();
    write(&mut folder, 1..=3);
    assert!(folder.write(&hash(4), Some(&hash(3)), &bytes(4)));
    drop(folder);
    // What a crash between write and rename leaves.
    std::fs::write(bench.dir.path().join(TEMPORARY_FILE), b"half").unwrap();
    let mut folder = bench.open().unwrap();
    assert!(!bench.dir.path().join(TEMPORARY_FILE).exists());
    for number in 1..=4 {
        assert_eq!(folder.read(&hash(number)).unwrap()[..], bytes(number)[..]);
    }
    assert!(folder.read(&hash(5)).is_none());
    let parent = folder.contents.lock().parent(&folder.contents.key(&hash(4)));
    assert_eq!(parent, Some(folder.contents.key(&hash(3))));
    let snapshot = bench.counters.snapshot(super::super::Tier::Disk);
    assert_eq!((snapshot.blocks, snapshot.bytes, snapshot.corrupt), (4, 4 * PAGE_BYTES, 0));
}

#[test]
fn bytes_stay_within_the_bound_also_when_it_shrinks() {
    let mut bench = Bench::new(4);
    let mut folder = bench.open().unwrap();
    for number in 1..=20 {
        write(&mut folder, [number]);
        assert!(bench.files().len() <= 4);
    }
    assert_eq!(bench.counters.snapshot(super::super::Tier::Disk).evictions, 16);
    assert!(folder.read(&hash(16)).is_none());
    // The time of a use is kept with the file, in steps that a file system can tell apart.
    for (age, number) in [(30, 19_u8), (40, 20), (50, 17), (60, 18)] {
        let path = folder.file(&folder.contents.key(&hash(number)), None);
        let time = SystemTime::now() - Duration::from_secs(age);
        File::options().write(true).open(path).unwrap().set_modified(time).unwrap();
    }
    assert!(folder.read(&hash(18)).is_some());
    drop(folder);
    bench.options.bytes = 2 * PAGE_BYTES;
    let mut folder = bench.open().unwrap();
    assert_eq!(bench.files().len(), 2);
    assert!(folder.read(&hash(18)).is_some() && folder.read(&hash(19)).is_some());
}

#[test]
fn every_broken_file_is_a_miss_and_goes() {
    let bench = Bench::new(100);
    let mut folder = bench.open().unwrap();
    let good = {
        write(&mut folder, [1]);
        std::fs::read(&bench.files()[0]).unwrap()
    };
    for bit in (0..good.len() * 8).step_by(7) {
        let mut flipped = good.clone();
        flipped[bit / 8] ^= 1 << (bit % 8);
        std::fs::write(&bench.files()[0], &flipped).unwrap();
        assert!(folder.read(&hash(1)).is_none(), "bit {bit}");
        assert!(bench.files().is_empty());
        assert!(!folder.contents.contains(&hash(1)));
        write(&mut folder, [1]);
    }
    std::fs::remove_file(&bench.files()[0]).unwrap();
    let before = bench.counters.snapshot(super::super::Tier::Disk).corrupt;
    assert!(folder.read(&hash(1)).is_none(), "somebody removed it");
    assert_eq!(bench.counters.snapshot(super::super::Tier::Disk).corrupt, before);
    assert!(before > 100);
}

#[test]
fn another_models_blocks_are_never_read_but_make_room() {
    let mut bench = Bench::new(3);
    let mut folder = bench.open().unwrap();
    write(&mut folder, 1..=3);
    drop(folder);
    bench.options.fingerprint = [2; 32];
    let mut folder = bench.open().unwrap();
    assert!((1..=3).all(|number| folder.read(&hash(number)).is_none()));
    write(&mut folder, 1..=3);
    assert!((1..=3).all(|number| folder.read(&hash(number)).is_some()));
    assert_eq!(bench.files().len(), 3);
}

#[test]
fn other_files_stay_as_they_are() {
    let bench = Bench::new(1);
    let foreign = ["notes.txt", "x.fairlead-kv", "lost+found", "A-first.fairlead-kv"];
    for name in foreign {
        std::fs::write(bench.dir.path().join(name), b"mine").unwrap();
    }
    let folder_of_theirs = bench.dir.path().join(format!("{:?}-first.fairlead-kv", hash(9)));
    std::fs::create_dir(&folder_of_theirs).unwrap();
    let mut folder = bench.open().unwrap();
    write(&mut folder, 1..=5);
    for name in foreign {
        assert_eq!(std::fs::read(bench.dir.path().join(name)).unwrap(), b"mine");
    }
    assert!(folder_of_theirs.is_dir());
}

#[test]
fn the_folder_has_one_owner_at_a_time() {
    let bench = Bench::new(3);
    let folder = bench.open().unwrap();
    assert!(bench.open().is_none());
    drop(folder);
    assert!(bench.open().is_some());
}

#[test]
fn a_folder_that_takes_nothing_more_costs_only_the_block() {
    let bench = Bench::new(3);
    let mut folder = bench.open().unwrap();
    write(&mut folder, [1]);
    // Also for root, whom permissions do not stop.
    std::fs::create_dir(bench.dir.path().join(TEMPORARY_FILE)).unwrap();
    assert!(!folder.write(&hash(2), None, &bytes(2)));
    assert!(!folder.contents.contains(&hash(2)));
    assert!(folder.read(&hash(2)).is_none());
    assert!(folder.read(&hash(1)).is_some());
    assert_eq!(bench.counters.snapshot(super::super::Tier::Disk).skipped, 1);
    std::fs::remove_dir(bench.dir.path().join(TEMPORARY_FILE)).unwrap();
    write(&mut folder, [2]);
    assert!(folder.read(&hash(2)).is_some());
}

#[test]
fn a_path_that_is_no_folder_is_named() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("file"), b"").unwrap();
    let error = prepare(&dir.path().join("file/kv")).unwrap_err().to_string();
    assert!(error.contains("kvCache.disk.path") && error.contains("file/kv"), "{error}");
    prepare(&dir.path().join("new/folder")).unwrap();
}
