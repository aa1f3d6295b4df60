//! Files and folders on disk: nothing half-written, nothing lost, nothing outside.

use std::fs;
use std::io::{Cursor, Seek, SeekFrom, Write};
use std::ops::ControlFlow;
use std::path::Path;

use tensorpress_entropy::container::{PackedFile, Packer};
use tensorpress_tensor::ErrorKind;

use crate::made::{bf16, safetensors};

fn folder_to_pack(parent: &Path) -> std::path::PathBuf {
    let folder = parent.join("model");
    for (name, bytes) in [
        ("model.safetensors", safetensors(&[("w", "BF16", vec![3000, 500], bf16(1_500_000, 1))])),
        ("config.json", b"{}".to_vec()),
        ("a/b/c.txt", b"deep".to_vec()),
        ("a/empty", vec![]),
        (".hidden", b"dot".to_vec()),
    ] {
        let path = folder.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
    }
    folder
}

fn names(folder: &Path) -> Vec<String> {
    let mut names: Vec<String> = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

#[test]
fn folders_come_back() {
    let parent = tempfile::tempdir().unwrap();
    let (model, to) = (folder_to_pack(parent.path()), parent.path().join("m.tpk"));
    let report = Packer::new().pack(&model, &to).unwrap();
    assert_eq!((report.files, report.tensors), (5, 1));
    assert_eq!(report.bytes_after, fs::metadata(&to).unwrap().len());
    assert!(report.bytes_after < report.bytes_before * 3 / 4);
    let packed = PackedFile::open(&to).unwrap();
    assert_eq!(packed.unpacked_bytes(), report.bytes_before);
    let again = parent.path().join("again");
    packed.unpack(&again, false, None).unwrap();
    for name in ["model.safetensors", "config.json", "a/b/c.txt", "a/empty", ".hidden"] {
        assert!(
            fs::read(model.join(name)).unwrap() == fs::read(again.join(name)).unwrap(),
            "{name}"
        );
    }
    assert_eq!(names(parent.path()), ["again", "m.tpk", "model"]);

    // What is there is replaced only when asked, and only where nothing else is lost.
    let kind = |force| packed.unpack(&again, force, None).expect_err("exists").kind();
    assert_eq!(kind(false), ErrorKind::Exists);
    fs::write(again.join("config.json"), "changed").unwrap();
    packed.unpack(&again, true, None).unwrap();
    assert_eq!(fs::read(again.join("config.json")).unwrap(), b"{}");
    fs::write(again.join("mine"), "x").unwrap();
    assert_eq!(kind(true), ErrorKind::InvalidArgument);
    assert!(again.join("mine").exists());
    assert_eq!(names(parent.path()), ["again", "m.tpk", "model"]);

    // Empty folders have no files.
    let empty = parent.path().join("empty");
    fs::create_dir(&empty).unwrap();
    let _ = Packer::new().pack(&empty, &parent.path().join("e.tpk")).unwrap();
    let packed = PackedFile::open(parent.path().join("e.tpk")).unwrap();
    packed.unpack(&parent.path().join("empty again"), false, None).unwrap();
    assert_eq!(names(&parent.path().join("empty again")), [""; 0]);
}

#[test]
fn targets_are_checked() {
    let parent = tempfile::tempdir().unwrap();
    let (model, to) = (folder_to_pack(parent.path()), parent.path().join("m.tpk"));
    let kind = |from: &Path, to: &Path, force| {
        Packer::new().with_force(force).pack(from, to).expect_err("refused").kind()
    };
    fs::write(&to, "there").unwrap();
    assert_eq!(kind(&model, &to, false), ErrorKind::Exists);
    assert_eq!(fs::read(&to).unwrap(), b"there");
    assert_eq!(kind(&to, &to, true), ErrorKind::InvalidArgument);
    assert_eq!(kind(&model, &model.join("m.tpk"), false), ErrorKind::InvalidArgument);
    assert_eq!(kind(&model, &model.join("a/m.tpk"), false), ErrorKind::InvalidArgument);
    assert_eq!(kind(&to, &model, true), ErrorKind::InvalidArgument);
    assert_eq!(kind(&parent.path().join("nothing"), &to, true), ErrorKind::Io);
    let _ = Packer::new().with_force(true).pack(&model, &to).unwrap();
    // A packed file is not unpacked over itself.
    let single = parent.path().join("single.tpk");
    let _ = Packer::new().pack(&model.join("config.json"), &single).unwrap();
    let packed = PackedFile::open(&single).unwrap();
    assert_eq!(
        packed.unpack(&single, true, None).expect_err("itself").kind(),
        ErrorKind::InvalidArgument
    );
    assert!(PackedFile::open(&single).is_ok());
}

#[cfg(unix)]
#[test]
fn links_and_odd_names_are_refused() {
    use std::os::unix::ffi::OsStrExt;
    let parent = tempfile::tempdir().unwrap();
    let to = parent.path().join("m.tpk");
    let outside = parent.path().join("outside");
    fs::write(&outside, "secret").unwrap();
    type Make<'a> = (&'a str, &'a dyn Fn(&Path));
    let odd: [Make<'_>; 5] = [
        ("link", &|f| std::os::unix::fs::symlink("nowhere", f.join("link")).unwrap()),
        ("loop", &|f| std::os::unix::fs::symlink(f, f.join("loop")).unwrap()),
        ("back\\slash", &|f| fs::write(f.join("back\\slash"), "x").unwrap()),
        ("C:x", &|f| fs::write(f.join("C:x"), "x").unwrap()),
        ("", &|f| fs::write(f.join(std::ffi::OsStr::from_bytes(b"\xff")), "x").unwrap()),
    ];
    for (i, (name, make)) in odd.iter().enumerate() {
        let folder = parent.path().join(i.to_string());
        fs::create_dir(&folder).unwrap();
        make(&folder);
        let error = Packer::new().pack(&folder, &to).expect_err("cannot be stored");
        assert_eq!(error.kind(), ErrorKind::Unsupported, "{error}");
        assert!(error.file().unwrap().to_string_lossy().contains(name), "{error}");
        assert!(!to.exists());
    }
    // A link that is named itself is followed: it is what was asked for.
    let link = parent.path().join("link");
    std::os::unix::fs::symlink(&outside, &link).unwrap();
    let _ = Packer::new().pack(&link, &to).unwrap();
    assert_eq!(PackedFile::open(&to).unwrap().unpacked_bytes(), 6);
}

/// As in the hub's cache, where every file is a link to one of another folder, and the folder is one itself.
#[cfg(unix)]
#[test]
fn links_are_followed() {
    use std::os::unix::fs::symlink;
    let parent = tempfile::tempdir().unwrap();
    let (blobs, snapshot) = (parent.path().join("blobs"), parent.path().join("snapshots/one"));
    fs::create_dir_all(snapshot.join("1_Pooling")).unwrap();
    fs::create_dir_all(blobs.join("all")).unwrap();
    fs::write(blobs.join("hash"), "config").unwrap();
    fs::write(blobs.join("all/x"), "x").unwrap();
    symlink("../../blobs/hash", snapshot.join("config.json")).unwrap();
    symlink("../../../blobs/hash", snapshot.join("1_Pooling/config.json")).unwrap();
    symlink("../../blobs/all", snapshot.join("linked")).unwrap();
    // Twice the same folder is no loop.
    symlink("../../blobs/all", snapshot.join("again")).unwrap();
    let model = parent.path().join("model");
    symlink(&snapshot, &model).unwrap();
    let (to, out) = (parent.path().join("m.tpk"), parent.path().join("out"));
    let report = Packer::new().pack(&model, &to).unwrap();
    assert_eq!(report.files, 4);
    let packed = PackedFile::open(&to).unwrap();
    packed.unpack(&out, false, None).unwrap();
    let plain = |name: &str, text: &str| {
        assert!(fs::symlink_metadata(out.join(name)).unwrap().is_file(), "{name}");
        assert_eq!(fs::read(out.join(name)).unwrap(), text.as_bytes());
    };
    plain("config.json", "config");
    plain("1_Pooling/config.json", "config");
    plain("linked/x", "x");
    plain("again/x", "x");
    // What it was packed from is no part of what is replaced.
    packed.unpack(&out, true, None).unwrap();
    fs::write(out.join("1_Pooling/mine"), "mine").unwrap();
    let error = packed.unpack(&out, true, None).expect_err("holds more");
    assert!(error.message().contains("1_Pooling/mine"), "{error}");
    plain("1_Pooling/mine", "mine");

    symlink("../..", snapshot.join("linked-up")).unwrap();
    let error = Packer::new().with_force(true).pack(&model, &to).expect_err("a loop");
    assert_eq!(error.kind(), ErrorKind::Unsupported, "{error}");
    assert!(error.file().unwrap().to_string_lossy().contains("linked-up"), "{error}");
    assert!(PackedFile::open(&to).is_ok());
}

/// A sink that fails after some bytes.
struct Full {
    inner: Cursor<Vec<u8>>,
    room: usize,
}

impl Write for Full {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        if self.inner.get_ref().len() + bytes.len() > self.room {
            return Err(std::io::Error::from(std::io::ErrorKind::StorageFull));
        }
        self.inner.write(bytes)
    }
    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl Seek for Full {
    fn seek(&mut self, to: SeekFrom) -> std::io::Result<u64> {
        self.inner.seek(to)
    }
}

#[test]
fn a_full_disk_is_an_error() {
    let parent = tempfile::tempdir().unwrap();
    let model = folder_to_pack(parent.path());
    let mut whole = Full { inner: Cursor::default(), room: usize::MAX };
    let report = Packer::new().pack_into(&model, &mut whole, "sink").unwrap();
    let len = report.bytes_after as usize;
    let bytes = whole.inner.into_inner();
    assert_eq!(bytes.len(), len);
    for room in [0, 10, 64, 1000, len / 2, len - 1] {
        let mut full = Full { inner: Cursor::default(), room };
        let error = Packer::new().pack_into(&model, &mut full, "sink").expect_err("full");
        assert_eq!(error.kind(), ErrorKind::Io, "{error}");
        // What was written is no packed file.
        assert!(PackedFile::from_bytes("x", full.inner.into_inner()).is_err());
    }
}

#[test]
fn work_that_is_stopped_leaves_nothing() {
    let parent = tempfile::tempdir().unwrap();
    let model = folder_to_pack(parent.path());
    let (to, out) = (parent.path().join("m.tpk"), parent.path().join("out"));
    let mut stop = |_| ControlFlow::Break(());
    let stopped = Packer::new().with_progress(&mut stop).pack(&model, &to);
    assert_eq!(stopped.expect_err("stopped").kind(), ErrorKind::Interrupted);
    assert_eq!(names(parent.path()), ["model"]);

    let mut seen = Vec::new();
    let mut watch = |progress| {
        seen.push(progress);
        ControlFlow::Continue(())
    };
    let report = Packer::new().with_progress(&mut watch).pack(&model, &to).unwrap();
    let last = seen.last().expect("is told");
    assert_eq!(
        (last.done, last.total, last.stored),
        (report.bytes_before, report.bytes_before, report.bytes_after)
    );

    let packed = PackedFile::open(&to).unwrap();
    let mut stop = |_| ControlFlow::Break(());
    let stopped = packed.unpack(&out, false, Some(&mut stop));
    assert_eq!(stopped.expect_err("stopped").kind(), ErrorKind::Interrupted);
    assert_eq!(names(parent.path()), ["m.tpk", "model"]);
    let mut after = 3;
    let mut stop = |_| {
        after -= 1;
        if after == 0 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    };
    let stopped = packed.verify(Some(&mut stop)).map(drop);
    assert_eq!(stopped.expect_err("stopped").kind(), ErrorKind::Interrupted);
}
