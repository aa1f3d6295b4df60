//! Files and folders that get their names whole or not at all, and take nothing from anybody.

use std::collections::BTreeSet;
use std::fs;
use std::io::Write;
use std::path::Path;

use tensorpress_tensor::checkpoint::{
    ByteSource, FileReader, MappedFile, Unfinished, find_foreign, name_folder, remove_files,
    remove_listed, survive_cut_files, write_atomically, write_new,
};
use tensorpress_tensor::{Error, ErrorKind, Result};

fn names(folder: &Path) -> Vec<String> {
    let listing = fs::read_dir(folder).unwrap();
    let names: BTreeSet<String> =
        listing.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.into_iter().collect()
}

fn writer(text: &str) -> impl FnMut(&mut fs::File) -> Result<()> + '_ {
    |file| {
        // In pieces, so that writers get in each other's way if they can.
        for piece in text.as_bytes().chunks(7) {
            file.write_all(piece).map_err(|e| Error::io("write", "", e))?;
            std::thread::yield_now();
        }
        Ok(())
    }
}

#[test]
fn of_several_writers_one_wins_whole() {
    let folder = tempfile::tempdir().unwrap();
    let texts: Vec<String> = (0..6).map(|i| i.to_string().repeat(5000)).collect();
    for round in 0..20 {
        let path = folder.path().join(round.to_string());
        let new = round % 2 == 0;
        let publish = if new { write_new } else { write_atomically };
        let done: Vec<Result<()>> = std::thread::scope(|scope| {
            let start = |text| {
                let path = &path;
                scope.spawn(move || publish(path, &mut writer(text)))
            };
            let all: Vec<_> = texts.iter().map(|text| start(text.as_str())).collect();
            all.into_iter().map(|one| one.join().unwrap()).collect()
        });
        let text = fs::read_to_string(&path).unwrap();
        let won = texts.iter().position(|t| *t == text).expect("one of them, whole");
        assert!(done[won].is_ok());
        let refused = done.iter().filter_map(|d| d.as_ref().err());
        let kinds: Vec<ErrorKind> = refused.map(Error::kind).collect();
        assert_eq!(kinds, vec![ErrorKind::Exists; if new { 5 } else { 0 }]);
    }
    assert_eq!(names(folder.path()).len(), 20, "no leftovers");
}

#[test]
fn what_came_meanwhile_stays() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x");
    let error = write_new(&path, &mut |_| {
        fs::write(&path, "mine").unwrap();
        Ok(())
    });
    assert_eq!(error.unwrap_err().kind(), ErrorKind::Exists);
    assert_eq!(fs::read(&path).unwrap(), b"mine");
    let unfinished = Unfinished::beside(&folder.path().join("folder")).unwrap();
    fs::write(unfinished.files().join("a"), "new").unwrap();
    fs::create_dir(folder.path().join("folder")).unwrap();
    fs::write(folder.path().join("folder/a"), "mine").unwrap();
    let error = unfinished.publish(&folder.path().join("folder"), None).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Exists);
    assert_eq!(fs::read(folder.path().join("folder/a")).unwrap(), b"mine");
    assert_eq!(names(folder.path()), ["folder", "x"]);
    // Names as long as the system has them.
    let long = folder.path().join("é".repeat(120));
    write_new(&long, &mut writer("x")).unwrap();
    assert_eq!(fs::read(&long).unwrap(), b"x");
}

#[test]
fn leftovers_go_and_nothing_else() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    for mine in ["x.tmp", "x.2024-01.tmp", "x.tensorpress-notes.tmp", "y.tensorpress-1-2.tmp"] {
        fs::write(at(mine), "mine").unwrap();
    }
    // A killed writer's file, its folder, and its folder before there was anything in it.
    fs::write(at("x.tensorpress-1-2.tmp"), "half").unwrap();
    fs::create_dir_all(at("x.tensorpress-1-3.tmp/files/inner")).unwrap();
    fs::write(at("x.tensorpress-1-3.tmp/tensorpress.lock"), "").unwrap();
    fs::create_dir(at("x.tensorpress-1-4.tmp")).unwrap();
    // One that is at work, and a folder that replaced one in which something else lies.
    let alive = Unfinished::beside(&at("x")).unwrap();
    fs::create_dir_all(at("x.tensorpress-1-5.tmp/files")).unwrap();
    for (name, text) in [
        ("tensorpress.lock", ""),
        ("tensorpress.replaced.json", r#"["a"]"#),
        ("files/a", "old"),
        ("files/mine", "mine"),
    ] {
        fs::write(at("x.tensorpress-1-5.tmp").join(name), text).unwrap();
    }
    write_atomically(&at("x"), &mut writer("new")).unwrap();
    let kept = names(folder.path());
    let unfinished = alive.files();
    let unfinished = unfinished.parent().unwrap().file_name().unwrap().to_str().unwrap();
    let mut expected = [
        "x",
        "x.2024-01.tmp",
        "x.tensorpress-1-5.tmp",
        "x.tensorpress-notes.tmp",
        "x.tmp",
        "y.tensorpress-1-2.tmp",
        unfinished,
    ];
    expected.sort_unstable();
    assert_eq!(kept, expected);
    assert_eq!(fs::read(at("x.tensorpress-1-5.tmp/files/mine")).unwrap(), b"mine");
    drop(alive);
    assert!(!names(folder.path()).iter().any(|name| name == unfinished));
}

fn fill(folder: &Path, files: &[(&str, &str)]) {
    for (name, text) in files {
        let path = folder.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }
}

#[test]
fn folders_are_replaced_if_nothing_else_is_in_them() {
    let parent = tempfile::tempdir().unwrap();
    let (new, to) = (parent.path().join("new"), parent.path().join("to"));
    let list = ["a".to_owned(), "in/b".to_owned(), "not there".to_owned()];
    fill(&new, &[("a", "new")]);
    fill(&to, &[("a", "old"), ("in/b", "old")]);
    assert_eq!(name_folder(&new, &to, None).unwrap_err().kind(), ErrorKind::Exists);
    name_folder(&new, &to, Some(&list)).unwrap();
    assert_eq!(fs::read(to.join("a")).unwrap(), b"new");
    assert_eq!((names(parent.path()), names(&to)), (vec!["to".to_owned()], vec!["a".to_owned()]));

    // What came after the look stays, under the name that the error says.
    for (name, kept) in [("mine", "mine"), ("in/mine", "in")] {
        fill(&new, &[("a", "newer")]);
        fill(&to, &[(name, "mine"), ("in/b", "old")]);
        let error = name_folder(&new, &to, Some(&list)).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Exists);
        let old = error.file().unwrap().to_path_buf();
        assert_eq!(names(&old), [kept]);
        assert_eq!(fs::read(old.join(name)).unwrap(), b"mine");
        assert_eq!(fs::read(to.join("a")).unwrap(), b"newer");
        fs::remove_dir_all(old).unwrap();
    }
    // The same through a folder of unfinished work, which must not take it along.
    let unfinished = Unfinished::beside(&to).unwrap();
    fill(&unfinished.files(), &[("a", "newest")]);
    fill(&to, &[("mine", "mine")]);
    let error = unfinished.publish(&to, Some(&list)).unwrap_err();
    assert_eq!(fs::read(error.file().unwrap().join("mine")).unwrap(), b"mine");
    assert_eq!(fs::read(to.join("a")).unwrap(), b"newest");
    let unfinished = Unfinished::beside(&to).unwrap();
    fill(&unfinished.files(), &[("a", "last")]);
    unfinished.publish(&to, Some(&list)).unwrap();
    assert_eq!(fs::read(to.join("a")).unwrap(), b"last");
}

#[test]
fn the_first_thing_that_is_not_ours() {
    let parent = tempfile::tempdir().unwrap();
    let folder = parent.path().join("f");
    fill(&folder, &[("a", ""), ("in/b", ""), ("in/deep/c", "")]);
    let find = |ours: &[&str]| find_foreign(&folder, &mut |n| Ok(ours.contains(&n))).unwrap();
    assert_eq!(find(&["a", "in/b", "in/deep/c"]), None);
    assert_eq!(find(&["a", "in/b"]).as_deref(), Some("in/deep/c"));
    assert_eq!(find(&["in/b", "in/deep/c"]).as_deref(), Some("a"));
    fs::create_dir(folder.join("empty")).unwrap();
    assert_eq!(find(&["a", "in/b", "in/deep/c"]).as_deref(), Some("empty"));
    fs::remove_dir(folder.join("empty")).unwrap();
    #[cfg(unix)]
    {
        std::os::unix::fs::symlink(parent.path(), folder.join("link")).unwrap();
        assert_eq!(find(&["a", "in/b", "in/deep/c", "link"]).as_deref(), Some("link"));
        fs::remove_file(folder.join("link")).unwrap();
    }
    let all = ["a", "in/b", "in/deep/c"].map(str::to_owned);
    remove_listed(&folder, &all).unwrap();
    assert!(!folder.exists());
}

#[test]
fn lists_that_lead_out_remove_nothing() {
    let parent = tempfile::tempdir().unwrap();
    let folder = parent.path().join("f");
    fill(parent.path(), &[("mine", "mine"), ("other/mine", "mine")]);
    fill(&folder, &[("a", "")]);
    let absolute = parent.path().join("mine").to_str().unwrap().to_owned();
    for name in ["../mine", "a/../../mine", "./../mine", "", "..", &absolute] {
        let error = remove_files(&folder, &["a".to_owned(), name.to_owned()]).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidArgument, "{error}");
        assert!(folder.join("a").exists() && parent.path().join("mine").exists(), "{name}");
    }
    #[cfg(unix)]
    {
        std::os::unix::fs::symlink(parent.path().join("other"), folder.join("in")).unwrap();
        let error = remove_listed(&folder, &["a", "in/mine"].map(str::to_owned)).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Exists, "{error}");
        assert_eq!(fs::read(parent.path().join("other/mine")).unwrap(), b"mine");
    }
}

fn cut(path: &Path, len: u64) {
    fs::File::options().write(true).open(path).unwrap().set_len(len).unwrap();
}

#[test]
fn files_that_move_are_told() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x");
    type Open = fn(&Path) -> Box<dyn ByteSource>;
    let sources: [Open; 2] = [
        |path| Box::new(FileReader::open(path).unwrap()),
        |path| Box::new(MappedFile::open(path).unwrap()),
    ];
    survive_cut_files();
    for open in sources {
        fs::write(&path, vec![7; 100_000]).unwrap();
        let source = open(&path);
        assert_eq!(&*source.read(5..8).unwrap(), [7; 3]);
        assert!(source.check_unmoved().is_ok());
        // Renamed away, it is still what it was.
        let aside = folder.path().join("aside");
        fs::rename(&path, &aside).unwrap();
        fs::write(&path, "another").unwrap();
        assert!(source.check_unmoved().is_ok());
        assert_eq!(&*source.read(99_999..100_000).unwrap(), [7]);
        // Within the last page that is left, far behind it, and all.
        for len in [99_990, 10_000, 0] {
            cut(&aside, len);
            let error = source.check_unmoved().unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Io);
            assert!(error.file().is_some_and(|file| file == path), "{error}");
            if cfg!(all(unix, not(miri))) {
                match source.read(90_000..100_000) {
                    Ok(bytes) => assert_eq!(bytes[9_999], 0),
                    Err(error) => assert_eq!(error.kind(), ErrorKind::Io),
                }
            }
        }
    }
    // Nobody has cut it, but it is another.
    fs::write(&path, "12345").unwrap();
    let source = FileReader::open(&path).unwrap();
    std::thread::sleep(std::time::Duration::from_millis(20));
    fs::write(&path, "54321").unwrap();
    assert!(source.check_unmoved().is_err());
    assert!(FileReader::open(folder.path()).is_err() && MappedFile::open(folder.path()).is_err());
}
