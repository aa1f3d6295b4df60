//! What of a source folder goes along as it is, and what does not.

use std::cell::RefCell;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use tensorpress_model::Source;
use tensorpress_tensor::checkpoint::{
    Files, is_other_weights, is_temporary, refuse_lfs_pointer, write_atomically,
};
use tensorpress_tensor::{Context, Error, Result};

use super::folder::{converting, partial_of};
use super::listing::{LIST, is_of_work};
use super::state::STATE;

/// Bytes copied at a time.
const PIECE: usize = 1 << 20;

/// Where a file that goes along comes from.
enum From<'a> {
    Files(&'a dyn Files, String),
    Memory(&'a [u8]),
}

/// Everything that goes along, by its path in the folder.
pub(super) struct Side<'a> {
    files: Vec<(String, From<'a>)>,
    /// What stays behind, though somebody might miss it.
    pub(super) notes: Vec<String>,
}

impl<'a> Side<'a> {
    /// Every file of the source, those in its folders too, but for what the pipeline makes anew, weights of the model in
    /// whatever format, hidden files and folders, and what this program makes: `out`, and other results beside it.
    ///
    /// # Errors
    /// `Io`; `Unsupported`, naming the path, for links that lead nowhere or into a loop, and what cannot be listed.
    pub(super) fn of(source: &'a Source, out: &Path) -> Result<Self> {
        let Some(from) = source.files() else {
            let files = source.tokenizer_files().into_iter();
            let files = files.map(|(name, bytes)| (name.to_owned(), From::Memory(bytes)));
            return Ok(Self { files: files.collect(), notes: Vec::new() });
        };
        let results = RefCell::new(Vec::new());
        let work = [out.to_path_buf(), partial_of(out), converting(out)];
        let work = work.map(|path| inside(source.folder(), &path));
        let paths = from.below(&|path| {
            let name = path.rsplit('/').next().unwrap_or(path);
            if name.starts_with('.') || is_temporary(name) {
                return false;
            }
            let ours = |mark: &&str| from.contains(&format!("{path}/{mark}"));
            if work.iter().flatten().any(|work| work == path) {
                return false;
            }
            let result = [LIST, STATE].iter().any(ours);
            if result {
                results.borrow_mut().push(path.to_owned());
            }
            !result
        })?;
        let modules = modules(from);
        let read: Vec<&Path> = source.checkpoint().files().collect();
        let (mut files, mut weights, mut cut) = (Vec::new(), Vec::new(), Vec::new());
        for path in &paths {
            match kind(path, &modules, &paths) {
                Kind::Side => files.push((path.clone(), From::Files(from, path.clone()))),
                Kind::Made => {}
                Kind::Weights if read.contains(&&*from.path(path)) => {}
                Kind::Weights => weights.push(path.clone()),
                Kind::Unfinished => cut.push(path.clone()),
            }
        }
        let pointers = pointers(from, &files)?;
        let mut notes = Vec::new();
        let mut note = |what: &str, names: &[String]| {
            if !names.is_empty() {
                notes.push(format!("not copied, as {what}: {}", names.join(", ")));
            }
        };
        note("they hold weights that were not read, uncompressed", &weights);
        note("they are unfinished downloads", &cut);
        note("tensorpress made them", &results.into_inner());
        if !pointers.is_empty() {
            let what = "git-lfs pointers are copied as they are (`git lfs pull` fetches the files)";
            notes.push(format!("{what}: {}", pointers.join(", ")));
        }
        Ok(Self { files, notes })
    }

    /// Paths of the files.
    pub(super) fn names(&self) -> Vec<String> {
        self.files.iter().map(|(name, _)| name.clone()).collect()
    }

    /// Copies all of it below a folder.
    pub(super) fn copy(&self, to: &Path) -> Result<()> {
        self.files.iter().try_for_each(|(name, from)| {
            make_parent(to, name)?;
            copy(from, &to.join(name))
        })
    }
}

/// Files that were not fetched.
fn pointers(from: &dyn Files, files: &[(String, From<'_>)]) -> Result<Vec<String>> {
    let mut pointers = Vec::new();
    for (name, _) in files {
        let file = from.open(name)?;
        let begin = file.read(0..file.size().min(64)).in_file(&from.path(name))?;
        if refuse_lfs_pointer(&begin, file.size()).is_err() {
            pointers.push(name.clone());
        }
    }
    Ok(pointers)
}

/// The path of `path` in a folder, if it lies there.
fn inside(folder: Option<&Path>, path: &Path) -> Option<String> {
    let parent = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let real = parent.canonicalize().ok()?.join(path.file_name()?);
    let relative = real.strip_prefix(folder?.canonicalize().ok()?).ok()?;
    let parts = relative.iter().map(|part| part.to_string_lossy());
    Some(parts.collect::<Vec<_>>().join("/"))
}

enum Kind {
    /// Goes along.
    Side,
    /// The pipeline writes it anew.
    Made,
    /// Weights of the model.
    Weights,
    Unfinished,
}

/// What a file is, by its path. Weights in a folder are those of the model in another format, or the original ones; but
/// for safetensors files, and what a folder has that `modules.json` names as a part of the model.
fn kind(path: &str, modules: &[String], paths: &[String]) -> Kind {
    let Some((folder, _)) = path.rsplit_once('/') else { return kind_at_top(path) };
    let module = modules.iter().any(|module| module == folder);
    let safetensors = |path: &str| path.ends_with(".safetensors");
    let beside =
        || paths.iter().any(|other| safetensors(other) && other.starts_with(&format!("{folder}/")));
    match () {
        () if path.ends_with(".incomplete") => Kind::Unfinished,
        () if is_other_weights(path) && (!module || beside()) => Kind::Weights,
        // Where Meta and OpenAI put what the checkpoint was converted from.
        () if safetensors(path) && folder == "original" => Kind::Weights,
        () => Kind::Side,
    }
}

fn kind_at_top(name: &str) -> Kind {
    let index = name.strip_suffix(".index.json");
    match () {
        () if name == "config.json" || name == LIST || is_of_work(name) => Kind::Made,
        () if index.is_some_and(|of| of.ends_with(".safetensors") || is_other_weights(of)) => {
            Kind::Made
        }
        () if name.ends_with(".incomplete") => Kind::Unfinished,
        // Says that there is an adapter, which stays behind.
        () if name == "adapter_config.json" => Kind::Weights,
        () if name.ends_with(".safetensors") || is_other_weights(name) => Kind::Weights,
        () => Kind::Side,
    }
}

/// Folders of the modules that follow the transformer in sentence-transformers models.
fn modules(files: &dyn Files) -> Vec<String> {
    let text = files.contains("modules.json").then(|| files.read("modules.json").ok()).flatten();
    let json = text.and_then(|text| serde_json::from_slice::<serde_json::Value>(&text).ok());
    let modules = json.as_ref().and_then(serde_json::Value::as_array).into_iter().flatten();
    let paths = modules.filter_map(|module| module["path"].as_str());
    paths.filter(|path| !path.is_empty()).map(str::to_owned).collect()
}

/// Makes the folder of a file below `root`. Nothing is written through a link.
fn make_parent(root: &Path, name: &str) -> Result<()> {
    let Some((parents, _)) = name.rsplit_once('/') else { return Ok(()) };
    let mut folder: PathBuf = root.to_path_buf();
    for part in parents.split('/') {
        folder.push(part);
        match fs::symlink_metadata(&folder) {
            Ok(found) if found.is_dir() => {}
            Ok(_) => return Err(Error::exists("is in the way: it is no folder").in_file(folder)),
            Err(_) => {
                fs::create_dir(&folder).map_err(|e| Error::io("create the folder", &folder, e))?
            }
        }
    }
    Ok(())
}

fn copy(from: &From<'_>, to: &Path) -> Result<()> {
    let (files, name) = match from {
        From::Memory(bytes) => {
            return write_atomically(to, &mut |file| {
                file.write_all(bytes).map_err(|e| Error::io("write the file", to, e))
            });
        }
        From::Files(files, name) => (files, name),
    };
    let file = files.open(name)?;
    write_atomically(to, &mut |out| {
        for at in (0..file.size()).step_by(PIECE) {
            let piece = file.read(at..file.size().min(at + PIECE as u64));
            let piece = piece.in_file(&files.path(name))?;
            out.write_all(&piece).map_err(|e| Error::io("copy the file", to, e))?;
        }
        file.check_unmoved().in_file(&files.path(name))
    })
}
