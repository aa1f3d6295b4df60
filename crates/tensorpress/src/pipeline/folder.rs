//! The folder of unfinished work.

use std::fs::{self, File, TryLockError};
use std::path::{Path, PathBuf};

use tensorpress_tensor::{Checkpoint, Error, Result};

use super::rewrite::stored;
use super::state::{Identity, STATE, State, Steps, Stored, Unit};

const LOCK: &str = "tensorpress.lock";
/// What the names of the files of rewrites begin with.
const REWRITE: &str = "tensorpress.rewrite-";

/// Where the work on `out` lies until it is done.
#[must_use]
pub fn partial_of(out: &Path) -> PathBuf {
    with_suffix(out, ".partial")
}

pub(super) fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(suffix);
    path.with_file_name(name)
}

/// Whether a result may go to `out`.
pub(super) fn check_target(out: &Path, source: Option<&Path>, force: bool) -> Result<()> {
    if out.file_name().is_none() {
        return Err(Error::invalid("is no name for a new folder").in_file(out));
    }
    let Ok(found) = fs::symlink_metadata(out) else { return Ok(()) };
    if !force {
        return Err(Error::exists("exists already").in_file(out));
    }
    if !found.is_dir() {
        return Err(Error::invalid("exists and is no folder").in_file(out));
    }
    let real = |path: &Path| path.canonicalize().ok();
    if source.is_some_and(|source| real(source) == real(out)) {
        return Err(Error::invalid("is the model to compress; write elsewhere").in_file(out));
    }
    // Model folders are flat: whatever has folders inside is not to be removed.
    let listing = fs::read_dir(out).map_err(|e| Error::io("list the folder", out, e))?;
    let nested = listing.flatten().find(|entry| entry.file_type().is_ok_and(|t| t.is_dir()));
    if let Some(nested) = nested {
        let name = nested.file_name().to_string_lossy().into_owned();
        let message = format!("holds a folder `{name}`, so it is no model; not replaced");
        return Err(Error::invalid(message).in_file(out));
    }
    Ok(())
}

/// What a rewrite keeps; of a block, or of all.
#[derive(Debug, Clone, Copy)]
pub(super) enum Step {
    Judgement(usize),
    Decisions,
    Edit(usize),
}

/// The folder of unfinished work and its state.
#[derive(Debug)]
pub(super) struct Work {
    folder: PathBuf,
    state: State,
    shards: usize,
    /// Held as long as this process works here.
    lock: File,
}

impl Work {
    /// Begins work for `out`, or takes up what an earlier run has left.
    pub(super) fn open(out: &Path, identity: Identity, force: bool) -> Result<Self> {
        let folder = partial_of(out);
        if folder.exists() && !folder.is_dir() {
            return Err(Error::invalid("is in the way: it is no folder").in_file(&folder));
        }
        fs::create_dir_all(&folder).map_err(|e| Error::io("create the folder", &folder, e))?;
        let lock = lock(&folder)?;
        let path = folder.join(STATE);
        let found = path.exists().then(|| resume(&path, &identity)).transpose();
        let state = match found {
            Ok(Some(state)) => state,
            Ok(None) if force || is_fresh(&folder)? => fresh(&folder, identity)?,
            Ok(None) => {
                let message = format!("holds files, but no {STATE}: it is not replaced unasked");
                return Err(Error::exists(message).in_file(&folder));
            }
            Err(_) if force => fresh(&folder, identity)?,
            Err(error) => return Err(error),
        };
        let mut work = Self { folder, state, shards: 0, lock };
        work.drop_damaged_steps();
        work.state.write(&path)?;
        Ok(work)
    }

    /// Steps of rewrites whose files are not what the state says are made again, and all after them.
    fn drop_damaged_steps(&mut self) {
        let mut rewrites = std::mem::take(&mut self.state.rewrites);
        for (index, steps) in rewrites.iter_mut().enumerate() {
            let same = |step: Step, file: &Stored| {
                stored(&self.step(index, step)).is_ok_and(|found| found == *file)
            };
            let whole = |step: fn(usize) -> Step, files: &[Stored]| {
                let files = files.iter().enumerate();
                files.take_while(|(block, file)| same(step(*block), file)).count()
            };
            let judged = whole(Step::Judgement, &steps.judged);
            if judged < steps.judged.len() {
                steps.decisions = None;
            }
            steps.judged.truncate(judged);
            steps.decisions.take_if(|file| !same(Step::Decisions, file));
            let edits = if steps.decisions.is_some() { whole(Step::Edit, &steps.edits) } else { 0 };
            let good = steps.decisions.is_some() && edits == steps.edits.len();
            steps.edits.truncate(edits);
            if !good {
                self.state.units.clear();
                rewrites.truncate(index + 1);
                break;
            }
        }
        self.state.rewrites = rewrites;
    }

    /// Begins the shards of a model of this many blocks. Those that are not what the state says are made again, and all
    /// after them.
    pub(super) fn begin(&mut self, blocks: usize) -> Result<()> {
        self.shards = blocks + 1;
        let whole = |(index, unit): &(usize, &Unit)| {
            Checkpoint::open(self.shard(*index)).is_ok_and(|shard| shard.file_bytes() == unit.bytes)
        };
        let good = self.state.units.iter().enumerate().take_while(whole).count();
        self.state.units.truncate(good.min(self.shards));
        self.write()
    }

    fn write(&self) -> Result<()> {
        self.state.write(&self.folder.join(STATE))
    }

    /// How far a rewrite has come, if it was begun.
    pub(super) fn rewrite(&self, index: usize) -> Option<&Steps> {
        self.state.rewrites.get(index)
    }

    /// Path of what a rewrite keeps.
    pub(super) fn step(&self, rewrite: usize, step: Step) -> PathBuf {
        let name = match step {
            Step::Judgement(block) => format!("judged-{block:05}"),
            Step::Decisions => "decisions".to_owned(),
            Step::Edit(block) => format!("edit-{block:05}"),
        };
        // No name that a reader of the finished folder would look at, should it be left there.
        self.folder.join(format!("{REWRITE}{rewrite}.{name}"))
    }

    fn steps(&mut self, index: usize) -> &mut Steps {
        let all = &mut self.state.rewrites;
        all.resize_with(all.len().max(index + 1), Steps::default);
        &mut all[index]
    }

    /// Notes that a rewrite has judged its next block.
    pub(super) fn judged(&mut self, rewrite: usize, file: Stored) -> Result<()> {
        self.steps(rewrite).judged.push(file);
        self.write()
    }

    /// Notes what a rewrite has decided.
    pub(super) fn decided(&mut self, rewrite: usize, file: Stored) -> Result<()> {
        self.steps(rewrite).decisions = Some(file);
        self.write()
    }

    /// Notes that the edit of the next block is made.
    pub(super) fn edited(&mut self, rewrite: usize, file: Stored) -> Result<()> {
        self.steps(rewrite).edits.push(file);
        self.write()
    }

    pub(super) fn folder(&self) -> &Path {
        &self.folder
    }

    /// Finished shards, in order.
    pub(super) fn units(&self) -> &[Unit] {
        &self.state.units
    }

    /// Every shard is finished.
    pub(super) fn is_complete(&self) -> bool {
        self.state.units.len() == self.shards
    }

    pub(super) fn shards(&self) -> usize {
        self.shards
    }

    /// Path of a shard: number 0 has what lies outside the blocks.
    pub(super) fn shard(&self, index: usize) -> PathBuf {
        self.folder.join(format!("model-{:05}-of-{:05}.safetensors", index + 1, self.shards))
    }

    /// Notes that the next shard is finished.
    pub(super) fn finished(&mut self, unit: Unit) -> Result<()> {
        self.state.units.push(unit);
        self.write()
    }

    /// Gives the folder up: what is left is to remove these files.
    pub(super) fn close(self) -> Vec<String> {
        let listing = fs::read_dir(&self.folder).into_iter().flatten().flatten();
        let names = listing.map(|entry| entry.file_name().to_string_lossy().into_owned());
        let mut leftovers: Vec<String> = names.filter(|name| name.starts_with(REWRITE)).collect();
        leftovers.extend([STATE, LOCK].map(str::to_owned));
        drop(self.lock);
        leftovers
    }
}

fn resume(path: &Path, identity: &Identity) -> Result<State> {
    let state = State::read(path)?;
    match state.identity.difference(identity) {
        None => Ok(state),
        Some(difference) => {
            let folder = path.parent().unwrap_or(path);
            Err(Error::exists(format!(
                "holds unfinished work of another kind: {difference}. Run that again to finish it; it is not replaced \
                 unasked"
            ))
            .in_file(folder))
        }
    }
}

/// Whether the folder has nothing but what the first moments of a run leave.
fn is_fresh(folder: &Path) -> Result<bool> {
    let listing = fs::read_dir(folder).map_err(|e| Error::io("list the folder", folder, e))?;
    let mut names = listing.flatten().map(|entry| entry.file_name());
    Ok(names.all(|name| {
        let name = name.to_string_lossy();
        name == LOCK || (name.starts_with(STATE) && name.ends_with(".tmp"))
    }))
}

/// A new state, and nothing of old work beside it. The old state goes first: no crash may leave it with less.
fn fresh(folder: &Path, identity: Identity) -> Result<State> {
    let listing = fs::read_dir(folder).map_err(|e| Error::io("list the folder", folder, e))?;
    let mut paths: Vec<PathBuf> = listing.flatten().map(|entry| entry.path()).collect();
    paths.sort_by_key(|path| !path.ends_with(STATE));
    for path in paths.iter().filter(|path| path.is_file() && !path.ends_with(LOCK)) {
        fs::remove_file(path).map_err(|e| Error::io("remove old work", path, e))?;
    }
    Ok(State { identity, rewrites: Vec::new(), units: Vec::new() })
}

fn lock(folder: &Path) -> Result<File> {
    let path = folder.join(LOCK);
    let file = File::create(&path).map_err(|e| Error::io("create the lock", &path, e))?;
    match file.try_lock() {
        Err(TryLockError::WouldBlock) => {
            Err(Error::invalid("another process is at work here").in_file(folder))
        }
        // Some file systems have no locks; work goes on without.
        Ok(()) | Err(TryLockError::Error(_)) => Ok(file),
    }
}
